"""Stable Diffusion 3.5 medium as shapes alone: what its published files say, at 1024 pixels."""

from dataclasses import replace
from pathlib import Path

from shapes import LENGTH, XL_VAE, Words

from slam_jax.families.sd3 import StableDiffusion3
from slam_jax.families.sd3_pipeline import T5_LENGTH, StableDiffusion3Pipeline
from slam_jax.formats.diffusers_folder import Folder
from slam_jax.formats.tokenizer import Tokenizer
from slam_jax.method.flow_matching import FlowMatching
from slam_jax.models.published_networks import CLIP_L, OPEN_CLIP_BIG_G, TRANSFORMERS
from slam_jax.models.t5 import T5Config
from slam_jax.models.vae import SD3VAEConfig

SIDE = 128  # of the latents
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
VAE = SD3VAEConfig(
    down_block_types=XL_VAE.down_block_types,
    up_block_types=XL_VAE.up_block_types,
    block_out_channels=XL_VAE.block_out_channels,
    layers_per_block=2,
    latent_channels=16,
    scaling_factor=1.5305,
    shift_factor=0.0609,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
T5_XXL = T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64)


def sd35_medium() -> StableDiffusion3:
    """A teacher without files."""
    encoders = replace(CLIP_L, projection=True), OPEN_CLIP_BIG_G, T5_XXL
    lengths = LENGTH, LENGTH, T5_LENGTH
    pipeline = StableDiffusion3Pipeline(
        network=TRANSFORMERS["SD 3.5 medium"],
        scheduler=SCHEDULER,
        schedule=FlowMatching.from_config(SCHEDULER),
        latent_shape=(SIDE, SIDE, VAE.latent_channels),
        vae=VAE,
        text_encoders=encoders,
        tokenizers=tuple(
            Tokenizer(Words(encoder.vocab_size), length)
            for encoder, length in zip(encoders, lengths, strict=True)
        ),
    )
    return StableDiffusion3(pipeline, Folder(Path("sd35_medium"), "sd35_medium"))
