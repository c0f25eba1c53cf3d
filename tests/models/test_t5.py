"""The encoder of T5 against torch transformers, with the same weights; and its configuration."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from helpers import assert_close, assert_same_gradients, jit, normal
from transformers.models.t5.modeling_t5 import T5Attention

from slam_jax.formats import convert
from slam_jax.formats.safetensors import load_arrays
from slam_jax.models import functional
from slam_jax.models.t5 import FIXED, T5Config, T5EncoderModel, buckets_of_distances

TINY = T5Config(
    vocab_size=40,
    d_model=24,
    d_kv=6,  # heads that are wider together than the tokens
    d_ff=20,
    num_layers=2,
    num_heads=5,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=9,
    layer_norm_epsilon=0.1,  # large enough to be seen
)
# What the third text encoder of SD 3 was published with.
PUBLISHED = {
    "_name_or_path": "google/t5-v1_1-xxl",
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "vocab_size": 32128,
}
LENGTH = 13
TOKENS = np.random.default_rng(0).integers(2, 40, (3, LENGTH))
ENDS = np.array([4, LENGTH, 1])
MASK = np.arange(LENGTH)[None] < ENDS[:, None]


@dataclasses.dataclass(frozen=True)
class Reference:
    """What torch says: weights; features of TOKENS, masked ones too; gradients of the weights."""

    state_dict: dict
    features: np.ndarray
    masked: np.ndarray
    param_grads: dict


COTANGENT = normal(1, *TOKENS.shape, TINY.d_model).astype(np.float32)


@functools.cache
def model():
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(transformers.T5Config.from_dict(TINY.to_dict())).eval()
    with torch.no_grad():  # the defaults, ones and small numbers, would hide mistakes
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            is_scale = parameter.ndim == 1
            parameter.copy_(1 + 0.3 * noise if is_scale else noise / parameter.shape[1] ** 0.5)
            if "relative" in name:
                parameter.mul_(4)
    return model


@functools.cache
def reference():
    tokens = torch.from_numpy(TOKENS)
    features = model()(tokens).last_hidden_state
    (features * torch.from_numpy(COTANGENT)).sum().backward()
    with torch.no_grad():
        masked = model()(tokens, attention_mask=torch.from_numpy(MASK).long()).last_hidden_state
    return Reference(
        state_dict={key: value.numpy() for key, value in model().state_dict().items()},
        features=features.detach().numpy(),
        masked=masked.numpy(),
        param_grads={key: value.grad.numpy() for key, value in model().named_parameters()},
    )


def torch_params():
    abstract = functional.abstract_params(T5EncoderModel, TINY)
    params, missing, extra = convert.from_torch(reference().state_dict, abstract)
    assert not missing and not extra
    return params


def test_features_and_gradients_match_transformers():
    apply, expected = functional.apply_fn(T5EncoderModel, TINY), reference()

    def loss(params):
        features = apply(params, TOKENS)
        return jnp.sum(features * COTANGENT), (features, apply(params, TOKENS, MASK))

    gradients, (features, masked) = jit(jax.grad(loss, has_aux=True))(torch_params())
    assert_close(features, expected.features, 1e-5)
    for actual, other, end in zip(masked, expected.masked, ENDS, strict=True):
        assert_close(actual[:end], other[:end], 1e-5)
    gradients = convert.to_torch(gradients)
    assert gradients.keys() == expected.param_grads.keys()
    assert_same_gradients(gradients, expected.param_grads)


def test_bfloat16_params_compute_in_bfloat16_and_return_float32():
    apply, params = jit(functional.apply_fn(T5EncoderModel, TINY)), torch_params()
    params = functional.cast(params, jnp.bfloat16)
    operands = re.findall(
        r"stablehlo.dot_general.*: \((.*)\) ->", apply.lower(params, TOKENS).as_text()
    )
    assert operands and not any("f32" in types for types in operands)
    actual, expected = apply(params, TOKENS), reference().features
    assert actual.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(actual - expected) / np.linalg.norm(expected) <= 2e-2


@pytest.mark.parametrize("config", [TINY, T5Config()])
def test_buckets_are_those_of_transformers(config):
    places = torch.arange(400)
    buckets = config.relative_attention_num_buckets
    expected = T5Attention._relative_position_bucket(
        places[None] - places[:, None], True, buckets, config.relative_attention_max_distance
    )
    np.testing.assert_array_equal(buckets_of_distances(400, config), expected.numpy())


def test_torch_round_trip_is_exact_under_the_names_of_files(tmp_path):
    model().save_pretrained(tmp_path)
    expected = load_arrays(tmp_path / "model.safetensors")
    actual = convert.to_torch(torch_params())
    assert actual.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)
    assert "shared.weight" in actual


@pytest.mark.parametrize("names", [["shared"], ["encoder.embed_tokens"], None])
def test_the_embedding_has_two_names(names):
    tied = {"shared.weight", "encoder.embed_tokens.weight"}
    state_dict = dict(reference().state_dict)
    assert tied <= state_dict.keys()
    for key in tied - {f"{name}.weight" for name in names or ()}:
        if names:
            del state_dict[key]
    abstract = functional.abstract_params(T5EncoderModel, TINY)
    params, missing, extra = convert.from_torch(state_dict, abstract)
    assert not missing and not extra
    jax.tree.map(np.testing.assert_array_equal, params, torch_params())


def test_parameter_count_of_the_published_model():
    with torch.device("meta"):
        model = transformers.T5EncoderModel(transformers.T5Config.from_dict(PUBLISHED))
    abstract = functional.abstract_params(T5EncoderModel, T5Config.from_dict(PUBLISHED))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert functional.count_params(abstract) == count
    assert len(functional.flatten(abstract)) == len(list(model.parameters()))


def test_config_round_trip_and_published_keys():
    assert T5Config.from_dict(TINY.to_dict()) == TINY
    expected = T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64)
    assert T5Config.from_dict(PUBLISHED) == expected
    assert T5Config.from_dict(transformers.T5Config().to_dict() | FIXED) == T5Config()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["T5ForConditionalGeneration"]}, ["architectures", "T5EncoderModel"]),
        ({"feed_forward_proj": "relu"}, ["feed_forward_proj", "'relu'", "'gated-gelu'"]),
        ({"model_type": "umt5"}, ["model_type", "'umt5'", "'t5'"]),
        ({"num_heads": 0}, ["num_heads", "0", "whole numbers above 0"]),
        ({"relative_attention_num_buckets": 6}, ["relative_attention_num_buckets", "6", "4"]),
        ({"relative_attention_max_distance": 8}, ["relative_attention_max_distance", "8"]),
        ({"layer_norm_epsilon": "1e-6"}, ["layer_norm_epsilon", "'1e-6'", "above 0"]),
    ],
)
def test_unsupported_config_is_refused_by_name(changes, words):
    with pytest.raises(ValueError) as error:
        T5Config.from_dict(PUBLISHED | changes)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
