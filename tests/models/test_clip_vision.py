"""CLIP's vision tower, and its text encoder beside it, against transformers: same weights."""

import functools

import numpy as np
import pytest
import tiny_networks
from helpers import assert_close, jit

from slam_jax.formats import convert
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextModel
from slam_jax.models.clip_vision import CLIPVisionConfig, CLIPVisionModel, read_config

SIZES = dict(width=12, image_size=24, patch_size=8)
TOKENS = np.array([[300, 7, 2, 9, 1, 1], [300, 4, 1, 1, 1, 1]])
TOKENS[TOKENS == 300] = tiny_networks.VOCABULARY - 2
TOKENS[TOKENS == 1] = tiny_networks.VOCABULARY - 1


@functools.cache
def reference():
    return tiny_networks.clip(**SIZES)


def params_of(*models):
    """From transformers' weights, and the names in them that have no place."""
    abstract = {}
    for module_class, config in models:
        abstract |= functional.abstract_params(module_class, config)
    state = {key: tensor.numpy() for key, tensor in reference().state_dict().items()}
    state["vision_model.embeddings.position_ids"] = np.arange(10)[None]  # in published files
    state["text_model.embeddings.position_ids"] = np.arange(77)[None]
    params, missing, extra = convert.from_torch(state, abstract)
    assert not missing
    return params, extra


def test_features_of_pictures_match_transformers():
    import torch

    _, config = read_config(reference().config.to_dict())
    params, _ = params_of((CLIPVisionModel, config))
    images = np.random.default_rng(0).standard_normal((3, 24, 24, 3)).astype(np.float32)
    with torch.no_grad():
        nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        pooled = reference().vision_model(nchw).pooler_output
        expected = reference().visual_projection(pooled).numpy()
    actual = jit(functional.apply_fn(CLIPVisionModel, config))(params, images)
    assert actual.dtype == np.float32 and actual.shape == (3, 12)
    assert_close(actual, expected, 1e-5)


def test_features_of_texts_match_transformers():
    import torch

    config, _ = read_config(reference().config.to_dict())
    params, _ = params_of((CLIPTextModel, config))
    with torch.no_grad():
        pooled = reference().text_model(torch.from_numpy(TOKENS)).pooler_output
        expected = reference().text_projection(pooled).numpy()
    actual = jit(functional.apply_fn(CLIPTextModel, config))(params, TOKENS).pooled
    assert_close(actual, expected, 1e-5)


def test_both_towers_take_all_of_a_file_but_the_temperature():
    text, vision = read_config(reference().config.to_dict())
    _, extra = params_of((CLIPTextModel, text), (CLIPVisionModel, vision))
    assert extra == ["logit_scale"]


# The published config.json of B/32, as far as it says how the networks are; others differ in these.
B32 = {
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 512,
    "text_config": {
        "architectures": None,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 8,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "vocab_size": 49408,
    },
    "text_config_dict": None,
    "torch_dtype": "float32",
    "vision_config": {
        "architectures": None,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "image_size": 224,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "patch_size": 32,
    },
    "vision_config_dict": None,
}
LARGE_TEXT = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
LARGE = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
LARGE |= dict(patch_size=14)
L14 = dict(projection_dim=768, text_config=B32["text_config"] | LARGE_TEXT)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 151_277_313),
        ({**L14, "vision_config": LARGE}, 427_616_513),
        ({**L14, "vision_config": LARGE | {"image_size": 336}}, 427_944_193),
    ],
    ids=["B/32", "L/14", "L/14-336"],
)
def test_parameter_counts_of_published_models(changes, count):
    text, vision = read_config(B32 | changes)
    abstract = functional.abstract_params(CLIPTextModel, text)
    abstract |= functional.abstract_params(CLIPVisionModel, vision)
    temperature = 1
    assert functional.count_params(abstract) + temperature == count


def test_defaults_are_those_of_transformers():
    import transformers

    text, vision = read_config(transformers.CLIPConfig().to_dict())
    assert vision == CLIPVisionConfig()
    assert (text.projection, text.projection_dim, text.eos_token_id) == (True, 512, 49407)
    assert read_config(B32)[0].eos_token_id == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "siglip"}, ["model_type", "'siglip'", "'clip'"]),
        ({"text_config": None}, ["text_config", "None"]),
        ({"vision_config": {"hidden_act": "relu"}}, ["hidden_act", "'relu'", "'quick_gelu'"]),
        ({"vision_config": {"num_attention_heads": 7}}, ["num_attention_heads", "7"]),
        ({"vision_config": {"patch_size": 15}}, ["patch_size", "15", "image_size"]),
    ],
)
def test_unsupported_config_is_refused_by_name(changes, words):
    with pytest.raises(ValueError) as error:
        read_config(B32 | changes)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
