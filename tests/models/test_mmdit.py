"""The transformer of SD 3 and 3.5 against torch diffusers, with the same weights; its config."""

import dataclasses
import inspect
import re

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from diffusers.models.embeddings import PatchEmbed
from helpers import assert_same_gradients
from jaxprs import operations
from torch_mmdits import (
    CONFIGS,
    SD3_MEDIUM,
    SD35_MEDIUM,
    example_inputs,
    reference,
    seeded,
    torch_params,
)
from torch_unets import jit, relative_error

from slam_jax.formats import convert
from slam_jax.models import functional, lora
from slam_jax.models.execution import Execution
from slam_jax.models.mmdit import SD3Config, SD3Transformer2DModel
from slam_jax.models.mmdit_blocks import JointTransformerBlock

# How each of CONFIGS is computed here: attention, and what is computed again.
WAYS = {
    "sd3": ("xla", "full"),
    "sd35_medium": ("chunked", "minimal"),
}
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "proj_out"),
)


@pytest.mark.parametrize("name", CONFIGS)
def test_output_and_gradients_match_diffusers(name):
    expected, params, inputs = reference(name), torch_params(name), example_inputs(name)
    attention, remat = WAYS[name]
    execution = Execution(attention=attention)
    apply = functional.apply_fn(SD3Transformer2DModel, CONFIGS[name], execution=execution)

    def loss(params, inputs):
        output = apply(params, **inputs, remat=remat)
        return jnp.sum(output * expected.cotangent), output

    grads = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (param_grads, input_grads), output = jit(grads, params, inputs)(params, inputs)
    assert output.shape == expected.output.shape
    assert relative_error(output, expected.output) <= 1e-5
    for key, grad in expected.input_grads.items():
        assert relative_error(input_grads[key], grad) <= 1e-5, key
    param_grads = convert.to_torch(param_grads)
    assert not param_grads.pop("pos_embed.pos_embed").any()
    assert param_grads.keys() == expected.param_grads.keys()
    assert_same_gradients(param_grads, expected.param_grads)


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_tokens_at_the_end_of_a_text_are_computed_once(name):
    inputs, execution = example_inputs(name), Execution(attention=WAYS[name][0])
    apply = functional.apply_fn(SD3Transformer2DModel, CONFIGS[name], execution=execution)
    states = inputs["encoder_hidden_states"]
    with torch.no_grad():
        expected = seeded(diffusers.SD3Transformer2DModel, CONFIGS[name])(
            torch.from_numpy(inputs["sample"]).permute(0, 3, 1, 2),
            torch.from_numpy(np.concatenate([states, states[:, -1:], states[:, -1:]], axis=1)),
            torch.from_numpy(inputs["pooled_projections"]),
            torch.from_numpy(inputs["timesteps"]),
        ).sample.permute(0, 2, 3, 1)
    actual = jax.jit(lambda params: apply(params, **inputs, repeats=3))(torch_params(name))
    assert relative_error(actual, expected) <= 1e-5
    assert relative_error(reference(name).output, expected) > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_round_trip_is_exact(name):
    expected = reference(name).state_dict
    actual = convert.to_torch(torch_params(name))
    assert actual.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)


@pytest.mark.parametrize("published", [SD3_MEDIUM, SD35_MEDIUM])
def test_parameter_counts_of_published_models(published):
    with torch.device("meta"):
        state_dict = diffusers.SD3Transformer2DModel.from_config(published).state_dict()
    config = SD3Config.from_dict(published)
    abstract = functional.abstract_params(SD3Transformer2DModel, config)
    assert len(functional.flatten(abstract)) == len(state_dict)
    assert functional.count_params(abstract) == sum(x.numel() for x in state_dict.values())


@pytest.mark.parametrize("sizes", [(8, 6), (128, 96)])
def test_features_of_places_of_a_fresh_network_are_those_of_diffusers(sizes):
    size, max_size = sizes
    config = dataclasses.replace(CONFIGS["sd3"], sample_size=size, pos_embed_max_size=max_size)
    with torch.no_grad():
        layer = PatchEmbed(size, size, 2, 4, config.width, pos_embed_max_size=max_size)
    fresh = functional.init(SD3Transformer2DModel, config, jax.random.key(0))
    expected = layer.pos_embed.numpy()
    np.testing.assert_allclose(fresh["pos_embed"]["pos_embed"], expected, rtol=0, atol=1e-7)


def test_bfloat16_params_compute_in_bfloat16_and_return_float32():
    apply = functional.apply_fn(SD3Transformer2DModel, CONFIGS["sd35_medium"])
    params = functional.cast(torch_params("sd35_medium"), jnp.bfloat16)
    program = jax.jit(lambda params: apply(params, **example_inputs("sd35_medium"))).lower(params)
    operands = re.findall(
        r"stablehlo.(?:dot_general|convolution).*: \((.*)\) ->", program.as_text()
    )
    assert operands and not any("f32" in types for types in operands)
    assert program.out_info.dtype == jnp.float32


class DualBlock(JointTransformerBlock):
    """The first of SD 3.5 medium."""

    def __init__(self, config, *, rngs):
        super().__init__(config, 0, rngs=rngs)


@pytest.mark.slow
def test_a_block_of_real_width_in_bfloat16():
    config = SD3Config.from_dict(SD35_MEDIUM)
    torch.manual_seed(0)
    block = diffusers.models.attention.JointTransformerBlock(
        config.width, 24, 64, qk_norm="rms_norm", use_dual_attention=True
    )
    rng = np.random.default_rng(0)
    shapes = (1, 64, config.width), (1, 20, config.width), (1, config.width)
    inputs = [rng.standard_normal(shape, np.float32) for shape in shapes]
    with torch.no_grad():
        context, x = block(*map(torch.from_numpy, inputs))
    state_dict = {key: value.detach().numpy() for key, value in block.state_dict().items()}
    abstract = functional.abstract_params(DualBlock, config)
    params, missing, extra = convert.from_torch(state_dict, abstract)
    assert not missing and not extra
    params = functional.cast(params, jnp.bfloat16)
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    actual = jit(functional.apply_fn(DualBlock, config), params, *inputs)(params, *inputs)
    for one, other in zip(actual, (x, context), strict=True):
        assert one.dtype == jnp.bfloat16
        assert 1e-4 < relative_error(one.astype(jnp.float32), other) <= 2e-2


def gradient_operations(remat):
    """How often each operation is in a gradient."""
    apply = functional.apply_fn(SD3Transformer2DModel, CONFIGS["sd35_medium"])
    params, inputs = torch_params("sd35_medium"), example_inputs("sd35_medium")

    def loss(params):
        return jnp.sum(apply(params, **inputs, remat=remat))

    return operations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)


def test_each_block_is_computed_again_where_it_is_told_to():
    plain, minimal, full = map(gradient_operations, ("none", "minimal", "full"))
    for again in (minimal - plain, full - plain):
        assert again["remat2"] == 3
        assert again["exp"] == 3 + 1  # the softmax of each attention; one block is dual
        assert again["batched dot_general"] == 2 * (3 + 1)  # its scores and its output
    assert (minimal - plain)["dot_general"] == 0
    # Two for the time, the two attentions' eight and four, two feed-forwards' four. In the last
    # block those of the text are its keys and values only: its queries, of which nothing is made,
    # are just in the plain program.
    assert (full - plain)["dot_general"] == (2 + 8 + 4 + 4) + (2 + 8 + 4) + (2 + 4 + 2 + 2) - 1


def test_lora_has_the_layers_that_peft_adapts():
    for name, config in CONFIGS.items():
        model = diffusers.SD3Transformer2DModel.from_config(config.to_dict())
        model.add_adapter(peft.LoraConfig(r=4, target_modules=list(TARGETS)))
        names = {"lora_A.default": lora.DOWN, "lora_B.default": lora.UP}
        arrays = {}
        for key, value in model.named_parameters():
            for theirs, ours in names.items():
                if theirs in key:
                    arrays[key.replace(theirs, ours)] = value.detach().numpy()
        adapters = lora.abstract_adapters(torch_params(name), 4, TARGETS)
        _, missing, extra = convert.from_torch(arrays, adapters)
        assert not missing and not extra
        # 7 of each block and one more where it is not the last; attn2's; the projection at the end.
        linear = 9 + 10 * (config.num_layers - 1) + 4 * len(config.dual_attention_layers) + 1
        assert len(arrays) == 2 * linear


def test_pictures_that_are_too_large_are_refused():
    apply = functional.apply_fn(SD3Transformer2DModel, CONFIGS["sd3"])
    inputs = example_inputs("sd3") | {"sample": np.zeros((2, 4, 14, 4), np.float32)}
    with pytest.raises(ValueError) as error:
        jax.eval_shape(lambda params: apply(params, **inputs), torch_params("sd3"))
    assert str(error.value) == "SD3: 2 x 7 patches, pos_embed_max_size = 6"


def test_config_round_trip_and_published_keys():
    for config in CONFIGS.values():
        assert SD3Config.from_dict(config.to_dict()) == config
    expected = SD3Config(
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=192,
    )
    assert SD3Config.from_dict(SD3_MEDIUM) == expected
    expected = dataclasses.replace(
        expected,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    assert SD3Config.from_dict(SD35_MEDIUM) == expected


def test_defaults_and_keys_are_those_of_diffusers():
    signature = inspect.signature(diffusers.SD3Transformer2DModel.__init__).parameters
    defaults = {key: p.default for key, p in signature.items() if key != "self"}
    ours = {key: tuple(v) if isinstance(v, list) else v for key, v in SD3Config().to_dict().items()}
    assert {"_class_name": "SD3Transformer2DModel", **defaults} == ours


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": 4}, ["patch_size", "4", "2"]),
        ({"qk_norm": "layer_norm"}, ["qk_norm", "'layer_norm'", "None and 'rms_norm'"]),
        ({"dual_attention_layers": [0, 18]}, ["dual_attention_layers", "(0, 18)", "0 to 17"]),
        ({"dual_attention_layers": 3}, ["dual_attention_layers", "3", "0 to 17"]),
        ({"caption_projection_dim": 1536}, ["caption_projection_dim", "1536", "1152"]),
        ({"out_channels": None}, ["out_channels", "None", "whole numbers above 0"]),
        ({"pos_embed_max_size": None}, ["pos_embed_max_size", "None"]),
        ({"colour": "blue"}, ["unknown", "colour", "'blue'"]),
    ],
)
def test_unsupported_config_is_refused_by_name(changes, words):
    with pytest.raises(ValueError) as error:
        SD3Config.from_dict(changes)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
