"""How a network is computed changes no result: every choice against torch and the plain path."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch_unets import CONFIGS, example_inputs, jit, reference, torch_params

from slam_jax.formats import convert
from slam_jax.models import functional, layers
from slam_jax.models.clip import CLIPAttention
from slam_jax.models.execution import NORM, Execution
from slam_jax.models.unet import UNet2DConditionModel
from slam_jax.models.vae import PixelAttention

PLAIN = Execution(attention="xla", norm="two_pass", projections="separate")
OTHER = Execution(attention="chunked", norm="one_pass", projections="fused")
CHOICES = {
    name: dataclasses.replace(PLAIN, **{name: getattr(OTHER, name)})
    for name in ("attention", "projections")  # none of the layers below has a norm
}


def output_and_gradients(execution, dtype):
    """Of the UNet that torch is asked about too; the gradients as float32, by torch's names."""
    inputs, params = example_inputs("digits"), torch_params("digits")
    params = functional.cast(params, dtype)
    apply = functional.apply_fn(UNet2DConditionModel, CONFIGS["digits"], execution=execution)

    def loss(params):
        output = apply(params, **inputs)
        return jnp.sum(output * reference("digits").cotangent), output

    gradients, output = jit(jax.grad(loss, has_aux=True), params)(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(dtype)}
    return output, convert.to_torch(functional.cast(gradients, jnp.float32))


def norm(arrays):
    return np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in arrays))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerances"),
    [(jnp.float32, (1e-5, 1e-5)), (jnp.bfloat16, (1e-2, 2e-2))],
    ids=["float32", "bfloat16"],
)
def test_a_unet_computed_otherwise_matches_diffusers(dtype, tolerances):
    """test_unet.py has it with the defaults."""
    output, gradients = output_and_gradients(OTHER, dtype)
    expected = reference("digits")
    errors = [gradients[name] - array for name, array in expected.param_grads.items()]
    assert norm([output - expected.output]) <= tolerances[0] * norm([expected.output])
    assert norm(errors) <= tolerances[1] * norm(expected.param_grads.values())


X = np.random.default_rng(1).standard_normal((2, 6, 16), np.float32)
CONTEXT = np.random.default_rng(2).standard_normal((2, 5, 12), np.float32)
# Every layer that has a choice, and its inputs.
LAYERS = {
    "self-attention": (
        lambda rngs: layers.Attention(16, 16, 2, rngs=rngs),
        lambda layer, x: layer(x, x),
        X,
    ),
    "cross-attention": (
        lambda rngs: layers.Attention(16, 12, 2, rngs=rngs),
        lambda layer, x, context: layer(x, context),
        X,
        CONTEXT,
    ),
    "text": (lambda rngs: CLIPAttention(16, 4, rngs=rngs), lambda layer, x: layer(x), X),
    "pixels": (
        lambda rngs: PixelAttention(16, 4, rngs=rngs),
        lambda layer, x: layer(x),
        X.reshape(2, 3, 2, 16),
    ),
}


def layer_and_params(name):
    build, call, *inputs = LAYERS[name]
    layer = build(nnx.Rngs(0))
    for path, parameter in nnx.to_flat_state(nnx.state(layer)):
        if path[-1] == "bias":  # zero would hide mistakes
            parameter[...] = jnp.linspace(-1, 1, parameter[...].size)
    return layer, call, inputs


def of_layer(name, execution):
    """A function of (params, inputs) and its arguments."""
    layer, call, inputs = layer_and_params(name)
    layer.set_attributes(execution=execution)
    graph, params = nnx.split(layer)
    return lambda params, inputs: call(nnx.merge(graph, params), *inputs), params, inputs


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("choice", CHOICES)
def test_layers_agree_with_the_plain_path(name, choice):
    results = []
    for execution in (PLAIN, CHOICES[choice]):
        apply, params, inputs = of_layer(name, execution)
        output, pullback = jax.vjp(apply, params, inputs)
        results.append([output, *jax.tree.leaves(pullback(jnp.cos(output)))])
    for plain, other in zip(*results, strict=True):
        # A key's bias changes no weight: its gradient is 0 but for rounding.
        np.testing.assert_allclose(other, plain, rtol=0, atol=1e-5 * np.abs(plain).max() + 2e-6)


@pytest.mark.parametrize(
    ("name", "separate", "fused"),
    [("self-attention", 4, 2), ("cross-attention", 4, 3), ("text", 4, 2), ("pixels", 4, 2)],
)
def test_fused_projections_are_one_product(name, separate, fused):
    """Of each layer's products with weights, counted in the program."""
    for choice, count in ((PLAIN, separate), (CHOICES["projections"], fused)):
        apply, params, inputs = of_layer(name, choice)
        program = jax.jit(apply).lower(params, inputs).as_text()
        products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
        assert len([line for line in products if "batching_dims" not in line]) == count


def torch_group_norm(x, scale, bias, cotangent, groups, eps):
    """Output and gradients for x [B, H, W, C], scale and bias, in float64."""
    import torch

    tensors = [
        torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in (x, scale, bias)
    ]
    y = torch.nn.functional.group_norm(tensors[0].permute(0, 3, 1, 2), groups, *tensors[1:], eps)
    y = y.permute(0, 2, 3, 1)
    y.backward(torch.tensor(np.asarray(cotangent, np.float64)))
    return [y.detach().numpy(), *(tensor.grad.numpy() for tensor in tensors)]


@pytest.mark.parametrize("mean", [0, 1e3])
@pytest.mark.parametrize("shape", [(2, 8, 8, 12), (2, 5, 3, 12), (1, 1, 1, 12)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("passes", NORM)
def test_group_norm_and_its_gradients(passes, dtype, tolerance, shape, mean):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    x, cotangent, scale, bias = normal(*shape) + dtype(mean), normal(*shape), normal(12), normal(12)
    layer = layers.GroupNorm(12, 4, 1e-5, rngs=nnx.Rngs(0))
    layer.execution = Execution(norm=passes)
    graph, _ = nnx.split(layer)

    def apply(x, scale, bias):
        layer = nnx.merge(graph, nnx.State({"scale": nnx.Param(scale), "bias": nnx.Param(bias)}))
        return layer(x)

    output, pullback = jax.vjp(apply, x, scale, bias)
    expected = torch_group_norm(x, scale, bias, cotangent, 4, 1e-5)
    # A mean of 1000 leaves float32 four digits of what is normalised.
    tolerance = max(tolerance, 1e-3) if mean else tolerance
    for one, other in zip([output, *pullback(cotangent)], expected, strict=True):
        assert one.dtype == dtype
        error = np.linalg.norm(np.asarray(one, np.float64) - other)
        assert error <= tolerance * np.linalg.norm(other) + 1e-6


def test_group_norm_does_not_round_what_it_adds_up():
    """Statistics of bfloat16 data are float32: 4096 equal steps would be lost otherwise."""
    x = jnp.tile(jnp.asarray([1, 1.0078125], jnp.bfloat16), 4096).reshape(1, 64, 128, 1)
    for passes in NORM:
        layer = layers.GroupNorm(1, 1, 1e-12, rngs=nnx.Rngs(0))
        layer.execution = Execution(norm=passes)
        np.testing.assert_allclose(np.unique(layer(x)), [-1, 1], atol=1e-2)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("attention", "'flash', expected one of auto, xla, cudnn, chunked"),
        ("norm", "'flash', expected one of one_pass, two_pass"),
        ("projections", "'flash', expected one of fused, separate"),
    ],
)
def test_another_name_is_refused(option, words):
    with pytest.raises(ValueError) as error:
        Execution(**{option: "flash"})
    assert str(error.value) == f"{option} = {words}"


def test_apply_fn_reaches_every_layer():
    """And leaves the function made before as it is."""
    config = CONFIGS["digits"]
    params = functional.abstract_params(UNet2DConditionModel, config)

    def tiles_and_products(execution):
        apply = functional.apply_fn(UNet2DConditionModel, config, execution=execution)
        program = jax.jit(lambda params: apply(params, **example_inputs("digits")))
        text = program.lower(params).as_text()
        return "stablehlo.while" in text, len(re.findall(r"dot_general.* contracting_dims", text))

    plain, other = tiles_and_products(PLAIN), tiles_and_products(OTHER)
    assert (plain[0], other[0]) == (False, True)
    assert other[1] < plain[1]
    assert tiles_and_products(PLAIN) == plain
