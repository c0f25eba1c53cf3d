"""The text encoder against torch transformers, with the same weights; and its configuration."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, jit

from slam_jax.formats import convert
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel, TextFeatures

VOCABULARY = dict(vocab_size=60, max_position_embeddings=9)
START, END = 58, 59
CONFIGS = {
    "L": CLIPTextConfig(
        **VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        eos_token_id=2,
    ),
    "H": CLIPTextConfig(
        **VOCABULARY,
        hidden_size=40,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act="gelu",
        layer_norm_eps=0.1,  # large enough to be seen
        eos_token_id=31,
    ),
    "bigG": CLIPTextConfig(
        **VOCABULARY,
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        hidden_act="gelu",
        projection_dim=28,
        eos_token_id=2,
        projection=True,
    ),
}
# The ends come after 3, 5 and 0 words; SD 1.5 pads with ends, SD 2 and SDXL with "!", which is 0.
TOKENS = {
    "L": [
        [START, 7, 2, 9, END, END, END, END, END],
        [START, 4, 5, 57, 0, 1, END, END, END],
        [START, END, END, END, END, END, END, END, END],
    ],
    "H": [  # 31 is the end, though not the largest id; and shorter than the limit
        [START, 7, 2, 9, 31, 0, 0],
        [START, 4, 5, 57, 0, 1, 31],
        [START, 31, 0, 0, 0, 0, 0],
    ],
    "bigG": [
        [START, 7, 2, 9, END, 0, 0, 0, 0],
        [START, 4, 5, 57, 0, 1, END, 0, 0],
        [START, END, 0, 0, 0, 0, 0, 0, 0],
    ],
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What torch says: weights and features of TOKENS."""

    state_dict: dict
    features: TextFeatures


@functools.cache
def reference(name):
    import torch
    import transformers

    torch.manual_seed(0)
    config = CONFIGS[name].to_dict()
    model_class = getattr(transformers, config["architectures"][0])
    model = model_class(transformers.CLIPTextConfig.from_dict(config)).eval()
    with torch.no_grad():  # the defaults, one and zero, would hide mistakes
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                is_scale = "norm" in parameter_name and parameter_name.endswith("weight")
                parameter.copy_(float(is_scale) + 0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(5)  # or else the activations look linear and attention uniform
        output = model(torch.tensor(TOKENS[name]), output_hidden_states=True)
    pooled = output.text_embeds if CONFIGS[name].projection else output.pooler_output
    features = (output.last_hidden_state, output.hidden_states[-2], pooled)
    return Reference(
        state_dict={key: value.numpy() for key, value in model.state_dict().items()},
        features=TextFeatures(*(x.numpy() for x in features)),
    )


def torch_params(name):
    abstract = functional.abstract_params(CLIPTextModel, CONFIGS[name])
    params, missing, extra = convert.from_torch(reference(name).state_dict, abstract)
    assert not missing and not extra
    return params


def encode(name, params):
    return jit(functional.apply_fn(CLIPTextModel, CONFIGS[name]))(params, np.array(TOKENS[name]))


@pytest.mark.parametrize("name", CONFIGS)
def test_features_match_transformers(name):
    expected, actual = reference(name).features, encode(name, torch_params(name))
    assert_close(actual.last_hidden_state, expected.last_hidden_state, 1e-5)
    assert_close(actual.penultimate, expected.penultimate, 1e-5)
    assert_close(actual.pooled, expected.pooled, 1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_pooled_features_are_those_of_the_first_end(name):
    actual = encode(name, torch_params(name))
    pooled = np.asarray(actual.last_hidden_state)[np.arange(3), [4, 6, 1]]
    if CONFIGS[name].projection:
        pooled = pooled @ reference(name).state_dict["text_projection.weight"].T
    assert_close(actual.pooled, pooled, 1e-5)


def test_bfloat16_params_compute_in_bfloat16_and_return_float32():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), torch_params("bigG"))
    apply = jit(functional.apply_fn(CLIPTextModel, CONFIGS["bigG"]))
    program = apply.lower(params, np.array(TOKENS["bigG"])).as_text()
    operands = re.findall(r"stablehlo.dot_general.*: \((.*)\) ->", program)
    assert operands and not any("f32" in types for types in operands)
    for actual, expected in zip(encode("bigG", params), reference("bigG").features, strict=True):
        assert actual.dtype == jnp.float32
        error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        assert error <= 2e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_round_trip_is_exact_under_the_published_names(name):
    expected = reference(name).state_dict
    if not any(key.startswith("text_model.") for key in expected):
        expected = {f"text_model.{key}": array for key, array in expected.items()}
    actual = convert.to_torch(torch_params(name))
    assert actual.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)
    for key in (
        "text_model.embeddings.token_embedding.weight",
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
        "text_model.final_layer_norm.weight",
    ):
        assert key in actual
    assert ("text_projection.weight" in actual) == CONFIGS[name].projection


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_keys_with_and_without_prefix_and_position_ids(prefix):
    bare = {k.removeprefix("text_model."): v for k, v in reference("L").state_dict.items()}
    bare["embeddings.position_ids"] = np.arange(9)[None]
    state_dict = {prefix + key: array for key, array in bare.items()}
    abstract = functional.abstract_params(CLIPTextModel, CONFIGS["L"])
    params, missing, extra = convert.from_torch(state_dict, abstract)
    assert not missing and not extra
    jax.tree.map(np.testing.assert_array_equal, params, torch_params("L"))


def test_texts_that_are_too_long_are_refused():
    apply = functional.apply_fn(CLIPTextModel, CONFIGS["L"])
    params = functional.abstract_params(CLIPTextModel, CONFIGS["L"])
    with pytest.raises(ValueError) as error:
        jax.eval_shape(apply, params, jax.ShapeDtypeStruct((1, 10), jnp.int32))
    assert str(error.value) == "CLIP: texts of 10 tokens, max_position_embeddings = 9"


# What the text encoder of SD 1.5 was published with.
PUBLISHED = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}
H = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16
) | dict(hidden_act="gelu", projection_dim=512)
BIG_G = dict(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20
) | dict(hidden_act="gelu", projection_dim=1280, architectures=["CLIPTextModelWithProjection"])


@pytest.mark.parametrize(("changes", "millions"), [({}, 123.06), (H, 340.39), (BIG_G, 694.66)])
def test_parameter_counts_of_published_models(changes, millions):
    config = CLIPTextConfig.from_dict(PUBLISHED | changes)
    abstract = functional.abstract_params(CLIPTextModel, config)
    assert round(functional.count_params(abstract) / 1e6, 2) == millions


def test_config_round_trip_and_published_keys():
    for config in CONFIGS.values():
        assert CLIPTextConfig.from_dict(config.to_dict()) == config
    expected = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        projection_dim=768,
        num_attention_heads=12,
        eos_token_id=2,
    )
    assert CLIPTextConfig.from_dict(PUBLISHED) == expected
    projecting = PUBLISHED | {"architectures": ["CLIPTextModelWithProjection"]}
    expected = dataclasses.replace(expected, projection=True)
    assert CLIPTextConfig.from_dict(projecting) == expected


def test_defaults_and_keys_are_those_of_transformers():
    import transformers

    assert CLIPTextConfig.from_dict(transformers.CLIPTextConfig().to_dict()) == CLIPTextConfig()
    of_clip = transformers.CLIPTextConfig.__annotations__.keys() - {"model_type"}
    of_training = {"attention_dropout", "dropout", "initializer_range", "initializer_factor"}
    of_tokens = {"bos_token_id", "pad_token_id"}
    fields = {field.name for field in dataclasses.fields(CLIPTextConfig)} - {"projection"}
    assert of_clip - of_training - of_tokens == fields


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "relu"}, ["hidden_act", "'relu'", "'quick_gelu' and 'gelu'"]),
        ({"architectures": ["T5EncoderModel"]}, ["architectures", "T5EncoderModel"]),
        ({"architectures": ["CLIPTextModel", "CLIPModel"]}, ["architectures", "CLIPModel"]),
        ({"eos_token_id": [2, 3]}, ["eos_token_id", "[2, 3]", "integer"]),
        ({"num_attention_heads": 7}, ["num_attention_heads", "7", "hidden_size"]),
        (
            {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": None},
            ["projection_dim", "None", "whole numbers above 0"],
        ),
    ],
)
def test_unsupported_config_is_refused_by_name(changes, words):
    with pytest.raises(ValueError) as error:
        CLIPTextConfig.from_dict(changes)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
