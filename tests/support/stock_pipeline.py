"""A Stable Diffusion teacher in our sampler and in diffusers' pipeline, from the same noise."""

from pathlib import Path

import jax
import numpy as np

from slam_jax.drawing.samplers import teacher_sampler
from slam_jax.families.family import LoadOptions
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.method.method import gaussian
from slam_jax.parallel.keys import keys_of


def drawn_by_both(folder: Path, texts: list[str], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures in [0, 1] with guidance 3, that is w = 2, [N, H, W, 3]; DDIM as the folder's
    scheduler says."""
    import torch
    from diffusers import StableDiffusionPipeline

    model = StableDiffusion.load(str(folder), LoadOptions())
    pipeline = model.pipeline
    sampler, prompts = teacher_sampler(pipeline, 2.0), pipeline.prompts(texts)
    ours = np.asarray(sampler(model.frozen, model.params, prompts, (0, 0), steps=steps))
    noise = gaussian(keys_of(0).noise, jax.numpy.arange(len(texts)), pipeline.latent_shape)
    stock = StableDiffusionPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        texts,
        height=ours.shape[1],
        width=ours.shape[2],
        latents=torch.from_numpy(np.array(noise)).permute(0, 3, 1, 2),
        num_inference_steps=steps,
        guidance_scale=3.0,
        output_type="np",
    ).images
    return (ours + 1) / 2, theirs
