"""The UNet against torch diffusers, with the same weights; and its configuration."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_same_gradients
from torch_unets import (
    CONFIGS,
    example_inputs,
    jit,
    reference,
    relative_error,
    torch_params,
)

from slam_jax.formats import convert
from slam_jax.models import functional, layers
from slam_jax.models.published_networks import UNETS
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig


@pytest.mark.parametrize("name", CONFIGS)
def test_output_and_gradients_match_diffusers(name):
    expected, params, inputs = reference(name), torch_params(name), example_inputs(name)
    apply = functional.apply_fn(UNet2DConditionModel, CONFIGS[name])

    def loss(params, inputs):
        output = apply(params, **inputs)
        return jnp.sum(output * expected.cotangent), output

    grads = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (param_grads, input_grads), output = jit(grads, params, inputs)(params, inputs)

    assert relative_error(output, expected.output) <= 1e-5
    assert relative_error(input_grads["sample"], expected.sample_grad) <= 1e-5
    assert_same_gradients(convert.to_torch(param_grads), expected.param_grads)


def test_bfloat16_params_compute_in_bfloat16_and_return_float32():
    apply = functional.apply_fn(UNet2DConditionModel, CONFIGS["digits"])
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), torch_params("digits"))
    inputs = example_inputs("digits")
    output = jit(lambda params: apply(params, **inputs), params)(params)
    assert output.dtype == jnp.float32
    assert 1e-4 < relative_error(output, reference("digits").output) <= 2e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_round_trip_is_exact(name):
    expected = reference(name).state_dict
    actual = convert.to_torch(torch_params(name))
    assert actual.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)


@pytest.mark.parametrize(
    ("published", "millions"),
    [("SD 1.5", 859.52), ("SD 2.x", 865.91), ("SDXL", 2567.46)],
)
def test_parameter_counts_of_published_models(published, millions):
    abstract = functional.abstract_params(UNet2DConditionModel, UNETS[published])
    assert round(functional.count_params(abstract) / 1e6, 2) == millions


@pytest.mark.parametrize("flip_sin_to_cos", [True, False])
@pytest.mark.parametrize("freq_shift", [0, 1])
def test_timestep_embedding_at_continuous_times(flip_sin_to_cos, freq_shift):
    t = np.array([0.0, 0.3, 17.25, 999.875])
    waves = np.outer(t, 10000.0 ** (-np.arange(8) / (8 - freq_shift)))
    halves = [np.cos(waves), np.sin(waves)] if flip_sin_to_cos else [np.sin(waves), np.cos(waves)]
    actual = layers.timestep_embedding(jnp.asarray(t, jnp.float32), 16, flip_sin_to_cos, freq_shift)
    np.testing.assert_allclose(actual, np.hstack(halves), atol=1e-4)


def test_timestep_cond_changes_nothing_at_init_and_something_later():
    config, inputs = CONFIGS["digits"], example_inputs("digits")
    config = dataclasses.replace(config, time_cond_proj_dim=16)
    apply = functional.apply_fn(UNet2DConditionModel, config)
    params = functional.init(UNet2DConditionModel, config, jax.random.key(0))

    def with_and_without(params):
        return apply(params, **inputs, timestep_cond=jnp.ones((2, 16))), apply(params, **inputs)

    with_and_without = jit(with_and_without, params)
    assert relative_error(*with_and_without(params)) <= 1e-6
    params["time_embedding"]["cond_proj"]["kernel"] = jnp.ones((16, 32))
    assert relative_error(*with_and_without(params)) >= 1e-2


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_norm_epsilon_and_large_mean(norm):
    mean = np.array([0.0, 5.0])[:, None, None, None]
    x = np.random.default_rng(0).standard_normal((2, 3, 1, 8)) * 3e-3 + mean
    axis, eps = (-1, 1e-5) if norm == "layer" else ((1, 2, 3), 1e-6)
    layer = (
        layers.LayerNorm(8, rngs=nnx.Rngs(0))
        if norm == "layer"
        else layers.GroupNorm(8, 1, eps, rngs=nnx.Rngs(0))
    )
    expected = (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + eps)
    assert relative_error(layer(x.astype(np.float32)), expected) <= 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_small_convolution_as_matrix(size, stride):
    conv = layers.Conv(3, 5, stride=stride, rngs=nnx.Rngs(0))
    conv.bias[...] = jnp.arange(5.0)
    x = jax.random.normal(jax.random.key(1), (2, *size, 3))
    both = jit(lambda x: (conv(x), nnx.Conv.__call__(conv, x)), x)
    np.testing.assert_allclose(*both(x), atol=1e-5)


def test_config_round_trip_and_published_keys():
    for config in CONFIGS.values():
        assert UNetConfig.from_dict(config.to_dict()) == config
    published = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "class_embed_type": None,
        "cross_attention_dim": 768,
        "mid_block_scale_factor": 1,
        "upcast_attention": None,
    }
    expected = UNetConfig(cross_attention_dim=768, upcast_attention=None)
    assert UNetConfig.from_dict(published) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_embed_type": "timestep"}, ["class_embed_type", "'timestep'", "None"]),
        ({"num_attention_heads": 8}, ["num_attention_heads", "8", "None"]),
        ({"act_fn": "gelu"}, ["act_fn", "'gelu'", "'silu'"]),
        ({"colour": "blue"}, ["unknown", "colour", "'blue'"]),
        (
            {"down_block_types": ["AttnDownBlock2D"] * 4},
            ["down_block_types", "CrossAttnDownBlock2D"],
        ),
        ({"up_block_types": ["UpBlock2D"] * 3}, ["up_block_types", "4"]),
        ({"attention_head_dim": [5, 10]}, ["attention_head_dim", "(5, 10)", "4"]),
        ({"transformer_layers_per_block": [[1]] * 4}, ["transformer_layers_per_block", "integer"]),
        ({"layers_per_block": [2, 2, 2, 2]}, ["layers_per_block", "(2, 2, 2, 2)"]),
        ({"addition_embed_type": "image"}, ["addition_embed_type", "'image'", "'text_time'"]),
        ({"addition_embed_type": "text_time"}, ["addition_time_embed_dim", "None", "integer"]),
    ],
)
def test_unsupported_config_is_refused_by_name(changes, words):
    with pytest.raises(ValueError) as error:
        UNetConfig.from_dict(changes)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_inputs_that_do_not_fit_the_config_are_refused():
    inputs = {name: example_inputs(name) for name in ("sd15", "sd21", "sdxl")}
    with_cond = inputs["sd21"] | {"timestep_cond": inputs["sd15"]["timestep_cond"]}
    without_added = {k: v for k, v in inputs["sdxl"].items() if k != "added_cond"}
    for name, wrong, message in (
        ("sd21", with_cond, "time_cond_proj_dim is None"),
        ("sdxl", without_added, "added_cond and addition_embed_type go together"),
    ):
        apply = functional.apply_fn(UNet2DConditionModel, CONFIGS[name])
        params = functional.abstract_params(UNet2DConditionModel, CONFIGS[name])
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(functools.partial(apply, **wrong), params)


def test_params_that_do_not_match_are_named():
    config, inputs = CONFIGS["digits"], example_inputs("digits")
    apply = functional.apply_fn(UNet2DConditionModel, config)
    params = functional.abstract_params(UNet2DConditionModel, config)
    params["conv_in"]["bias"] = jnp.zeros(7)
    with pytest.raises(ValueError, match=r"conv_in.bias has shape \(7,\), expected \(32,\)"):
        apply(params, **inputs)
    del params["conv_in"]["bias"]
    with pytest.raises(ValueError, match="conv_in.bias is missing"):
        apply(params, **inputs)
