"""A configuration with a value that no network has is refused by its key, before anything is
built."""

import dataclasses
import math

import pytest

from slam_jax.models.clip import CLIPTextConfig
from slam_jax.models.clip_vision import CLIPVisionConfig
from slam_jax.models.mmdit import SD3Config
from slam_jax.models.t5 import T5Config
from slam_jax.models.unet import UNetConfig
from slam_jax.models.vae import SD3VAEConfig, VAEConfig

CONFIGS = (
    *(UNetConfig, VAEConfig, SD3VAEConfig),
    *(SD3Config, CLIPTextConfig, CLIPVisionConfig, T5Config),
)


@pytest.mark.parametrize("config", CONFIGS)
def test_no_field_takes_what_is_of_no_kind(config):
    for field in dataclasses.fields(config()):
        for value in (math.nan, math.inf, -math.inf, 10**30, {"a": 1}, {1}, (object(),), b"x"):
            with pytest.raises((ValueError, TypeError)):  # whichever the first that reads it has
                config(**{field.name: value})


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (VAEConfig, "scaling_factor", 0),
        (VAEConfig, "scaling_factor", "0.18"),
        (VAEConfig, "sample_size", (0, 8)),
        (UNetConfig, "sample_size", (64,)),
        (UNetConfig, "sample_size", (64, 96, 1)),
        (UNetConfig, "sample_size", (64, "96")),
        (VAEConfig, "force_upcast", 1),
        (SD3VAEConfig, "shift_factor", True),
        (UNetConfig, "norm_eps", -1e-5),
        (UNetConfig, "block_out_channels", "3210"),
        (UNetConfig, "attention_head_dim", (5, "10")),
        (UNetConfig, "upcast_attention", 0),
    ],
)
def test_values_near_to_right_ones_are_refused(config, name, value):
    with pytest.raises(ValueError, match=rf"^{name} = .*, supported: "):
        config(**{name: value})


def test_values_of_published_files_are_taken():
    VAEConfig(scaling_factor=1, sample_size=(512, 768))
    SD3VAEConfig(shift_factor=None)
    assert UNetConfig.from_dict({"sample_size": [64, 96]}).to_dict()["sample_size"] == [64, 96]
    UNetConfig(freq_shift=0.5, upcast_attention=None, attention_head_dim=(5, 10, 20, 20))
