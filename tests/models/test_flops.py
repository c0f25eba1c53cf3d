"""The arithmetic of Stable Diffusion 1.5, from shapes alone."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from slam_jax.config.options import Config, Teacher
from slam_jax.data.options import Data
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig
from slam_jax.models.execution import Execution
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.models.vae import AutoencoderKL, VAEConfig
from slam_jax.recipes import memory

PAGE = (Path(__file__).parents[2] / "docs/performance.md").read_text()

# 2 FLOPs to a multiplication and addition, matrix products and convolutions only: one forward pass
# of the UNet at 512 x 512 pixels has 0.803e12. A step has the teacher with and without the prompt,
# the target, the student, and twice the student's for its gradient.
FORWARD = 0.803e12


UNET = UNetConfig(sample_size=64, cross_attention_dim=768)
VAE = VAEConfig(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
)
# Dense bfloat16, operations a second, of the data sheets; and how much of it a good program gets.
PEAKS, SHARE = {"A100": 312e12, "H100, H200": 989e12}, 0.4


@pytest.mark.nightly
def test_a_step_of_sd15_computes_each_thing_once(teachers):
    teacher = Teacher(path=str(teachers["sd15"]))
    family = StableDiffusion.open(teacher, teachers["sd15"])
    clip = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    family.pipeline = dataclasses.replace(
        family.pipeline, network=UNET, text_encoders=(clip,), latent_shape=(64, 64, 4)
    )
    config = Config(data=Data(source=memory.PREPARED), teacher=teacher)
    flops = memory.flops_per_sample(config, family)
    assert 0.98 * 6 * FORWARD < flops <= 1.01 * 6 * FORWARD
    rates = " | ".join(f"{SHARE * peak / flops:.0f} samples/s" for peak in PEAKS.values())
    row = f"| training step, latents prepared | {flops / 1e12:.2f} TF a sample | {rates} |"
    assert row in PAGE
    days = 6 * 86_400 * SHARE * PEAKS["A100"] / flops / 1e6
    assert f"show the student {days:.1f} million samples" in PAGE


def flops_of(module, config, method, *shapes):
    """Of one call, as XLA counts them."""
    apply = functional.apply_fn(module, config, method, Execution(attention="xla"))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    lowered = jax.jit(apply).lower(functional.abstract_params(module, config), *arrays)
    return lowered.cost_analysis()["flops"]


@pytest.mark.slow
def test_drawing_with_sd15():
    latents = (1, 64, 64, 4)
    forward = flops_of(UNet2DConditionModel, UNET, "__call__", latents, (1,), (1, 77, 768))
    decode = flops_of(AutoencoderKL, VAE, "decode", latents)
    assert forward == pytest.approx(FORWARD, rel=0.02)
    assert decode == pytest.approx(2.515e12, rel=0.02)
    for steps in (2, 4):
        flops = steps * forward + decode
        times = " | ".join(f"{flops / SHARE / peak * 1e3:.0f} ms" for peak in PEAKS.values())
        row = f"| one picture in {steps} steps, decoded | {flops / 1e12:.2f} TF | {times} |"
        assert row in PAGE, row
