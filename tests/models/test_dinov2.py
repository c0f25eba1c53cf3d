"""DINOv2 against transformers, with the same weights, and its positions against torch."""

import functools

import numpy as np
import pytest
import tiny_networks
from helpers import assert_close, jit

from slam_jax.formats import convert
from slam_jax.models import dinov2, functional
from slam_jax.models.dinov2 import Dinov2Config, Dinov2Model


@functools.cache
def reference():
    return tiny_networks.dinov2()


def pictures(side):
    images = np.random.default_rng(0).standard_normal((2, side, side, 3)).astype(np.float32)
    return images, images.transpose(0, 3, 1, 2).copy()


def features(images):
    config = Dinov2Config.from_dict(reference().config.to_dict())
    abstract = functional.abstract_params(Dinov2Model, config)
    state = {key: tensor.numpy() for key, tensor in published().items()}
    params, missing, extra = convert.from_torch(state, abstract)
    assert not missing and extra == ["embeddings.mask_token"]
    return jit(functional.apply_fn(Dinov2Model, config))(params, images)


def published():
    """The weights by the names in Facebook's files; transformers 5 has others in memory."""
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    names["o_proj"] = "output.dense"
    renamed = {}
    for key, tensor in reference().state_dict().items():
        for new, old in names.items():
            key = key.replace(f"attention.{new}.", f"attention.{old}.")
        renamed[key] = tensor
    assert "encoder.layer.1.attention.output.dense.bias" in renamed
    assert "encoder.layer.0.attention.attention.query.weight" in renamed
    return renamed


def interpolated_by_facebook(embeddings, height, width):
    """With the size as a factor, a tenth of a patch too large, as Facebook's code has it."""
    import torch

    table = embeddings.position_embeddings
    side = int((table.shape[1] - 1) ** 0.5)
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = [(length // 14 + 0.1) / side for length in (height, width)]
    grid = torch.nn.functional.interpolate(grid, scale_factor=factors, mode="bicubic")
    assert grid.shape[2:] == (height // 14, width // 14)
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@pytest.mark.parametrize("side", [84, 42, 112])
def test_features_match_transformers(side, monkeypatch):
    import torch

    embeddings = reference().embeddings
    if side != 84:
        monkeypatch.setattr(
            type(embeddings),
            "interpolate_pos_encoding",
            lambda self, _, height, width: interpolated_by_facebook(self, height, width),
        )
    images, nchw = pictures(side)
    with torch.no_grad():
        expected = reference()(torch.from_numpy(nchw)).pooler_output.numpy()
    actual = features(images)
    assert actual.dtype == np.float32
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize(("old", "new"), [(37, 16), (6, 3), (5, 8)])
def test_interpolation_is_torchs(old, new):
    import torch

    lines = torch.eye(old, dtype=torch.float64).reshape(1, old, old, 1).expand(1, old, old, 3)
    factor = (new + 0.1) / old
    result = torch.nn.functional.interpolate(lines, scale_factor=(factor, 1), mode="bicubic")
    expected = result[0, :, :, 0].T.numpy()
    assert expected.shape == (new, old)
    np.testing.assert_allclose(dinov2.interpolation(old, new), expected, atol=1e-6)


LARGE = {
    "architectures": ["Dinov2Model"],
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 1024,
    "image_size": 518,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "qkv_bias": True,
    "torch_dtype": "float32",
    "transformers_version": "4.31.0.dev0",
    "use_swiglu_ffn": False,
}


def test_parameter_count_of_the_published_model():
    abstract = functional.abstract_params(Dinov2Model, Dinov2Config.from_dict(LARGE))
    mask_token = 1024
    assert functional.count_params(abstract) + mask_token == 304_368_640


def test_defaults_are_those_of_transformers():
    import transformers

    assert Dinov2Config.from_dict(transformers.Dinov2Config().to_dict()) == Dinov2Config()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "dinov2_with_registers"}, ["model_type", "'dinov2'"]),
        ({"use_swiglu_ffn": True}, ["use_swiglu_ffn", "True", "False"]),
        ({"qkv_bias": False}, ["qkv_bias", "False", "True"]),
        ({"image_size": 224, "patch_size": 15}, ["patch_size", "15"]),
    ],
)
def test_unsupported_config_is_refused_by_name(changes, words):
    with pytest.raises(ValueError) as error:
        Dinov2Config.from_dict(LARGE | changes)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
