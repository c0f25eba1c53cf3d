"""How a network is computed changes no result: every choice against torch and the plain path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch_unets import CONFIGS, example_inputs, jit, reference, torch_params

from slam_jax.formats import convert
from slam_jax.models import functional, layers
from slam_jax.models.attention import attention
from slam_jax.models.clip import CLIPAttention
from slam_jax.models.execution import Execution
from slam_jax.models.unet import UNet2DConditionModel
from slam_jax.models.vae import PixelAttention

PLAIN, OTHER = Execution(attention="xla"), Execution(attention="chunked")


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
    "text": (
        lambda rngs: CLIPAttention(16, 4, causal=True, rngs=rngs),
        lambda layer, x: layer(x),
        X,
    ),
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
def test_layers_agree_with_the_plain_path(name):
    results = []
    for execution in (PLAIN, OTHER):
        apply, params, inputs = of_layer(name, execution)
        output, pullback = jax.vjp(apply, params, inputs)
        results.append([output, *jax.tree.leaves(pullback(jnp.cos(output)))])
    for plain, other in zip(*results, strict=True):
        # A key's bias changes no weight: its gradient is 0 but for rounding.
        np.testing.assert_allclose(other, plain, rtol=0, atol=1e-5 * np.abs(plain).max() + 2e-6)


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
def test_group_norm_and_its_gradients(dtype, tolerance, shape, mean):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    x, cotangent, scale, bias = normal(*shape) + dtype(mean), normal(*shape), normal(12), normal(12)
    layer = layers.GroupNorm(12, 4, 1e-5, rngs=nnx.Rngs(0))
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
    layer = layers.GroupNorm(1, 1, 1e-12, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(np.unique(layer(x)), [-1, 1], atol=1e-2)


def test_another_name_is_refused():
    with pytest.raises(ValueError) as error:
        Execution(attention="flash")
    expected = "attention = 'flash', expected one of auto, xla, cudnn, splash, chunked"
    assert str(error.value) == expected


def test_apply_fn_reaches_every_layer(monkeypatch):
    """And leaves the function made before as it is."""
    config, asked = CONFIGS["digits"], []
    params = functional.abstract_params(UNet2DConditionModel, config)

    def noted(q, k, v, implementation):
        asked.append(implementation)
        return attention(q, k, v, implementation)

    monkeypatch.setattr(layers, "attention", noted)
    functions = {
        execution.attention: functional.apply_fn(UNet2DConditionModel, config, execution=execution)
        for execution in (PLAIN, OTHER)
    }
    for name, apply in functions.items():
        asked.clear()
        jax.eval_shape(lambda p, apply=apply: apply(p, **example_inputs("digits")), params)
        # One transformer on the way down, one in the middle, two on the way up; two in each block.
        assert asked == [name] * 2 * 4
