"""The arithmetic of a training step of Stable Diffusion 1.5, from shapes alone."""

import dataclasses

import pytest

from slam_jax import need
from slam_jax.config import Config, Data, Teacher
from slam_jax.models.clip import CLIPTextConfig
from slam_jax.models.folder import resolve
from slam_jax.models.load import read_pipeline
from slam_jax.models.unet import UNetConfig

# 2 FLOPs to a multiplication and addition, matrix products and convolutions only: one forward pass
# of the UNet at 512 x 512 pixels has 0.803e12. A step has the teacher with and without the prompt,
# the target, the student, and twice the student's for its gradient.
FORWARD = 0.803e12


@pytest.mark.slow
def test_a_step_of_sd15_computes_each_thing_once(teachers):
    tiny = read_pipeline(resolve(str(teachers["sd15"])))
    unet = UNetConfig(sample_size=64, cross_attention_dim=768)
    clip = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    pipeline = dataclasses.replace(tiny, unet=unet, text_encoders=(clip,), latent_shape=(64, 64, 4))
    config = Config(data=Data(source=need.PREPARED), teacher=Teacher("x"))
    flops = need.flops_per_sample(config, pipeline)
    assert 0.98 * 6 * FORWARD < flops <= 1.01 * 6 * FORWARD
