"""A teacher in our sampler and in diffusers' pipeline, from the same noise."""

import json
from pathlib import Path

import jax
import numpy as np

from slam_jax.drawing.samplers import teacher_sampler
from slam_jax.method.method import gaussian
from slam_jax.parallel.keys import keys_of
from slam_jax.recipes.student import load


def load_stock(folder: Path):
    """The stock pipeline of a folder, which wants to be told that a part is left out."""
    from diffusers import DiffusionPipeline

    index = json.loads((folder / "model_index.json").read_text())
    names = ("text_encoder_3", "tokenizer_3")
    left_out = {name: None for name in names if index.get(name) == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(folder, **left_out)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by_both(
    folder: Path, texts: list[str], steps: int, scale: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures in [0, 1] with guidance, that is w = scale - 1, [N, H, W, 3]; DDIM or Euler as the
    folder's scheduler says."""
    import torch

    model = load(str(folder))
    pipeline = model.pipeline
    sampler, prompts = teacher_sampler(pipeline, scale - 1), pipeline.prompts(texts)
    ours = np.asarray(sampler(model.frozen, model.params, prompts, (0, 0), steps=steps))
    noise = gaussian(keys_of(0).noise, jax.numpy.arange(len(texts)), pipeline.latent_shape)
    theirs = load_stock(folder)(
        texts,
        height=ours.shape[1],
        width=ours.shape[2],
        latents=torch.from_numpy(np.array(noise)).permute(0, 3, 1, 2),
        num_inference_steps=steps,
        guidance_scale=scale,
        output_type="np",
    ).images
    return (ours + 1) / 2, theirs
