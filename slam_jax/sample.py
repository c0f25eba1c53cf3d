"""Drawing: jitted samplers for teacher and student, the step-ladder picture, and the command line.

python -m slam_jax.sample --workdir runs/digits --steps 4 --labels 0,1,2 --seed 3 --out grid.png
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slam_jax import pictures, runtime
from slam_jax.config import SEEDS
from slam_jax.data import digits
from slam_jax.errors import BackendError, InputError
from slam_jax.keys import keys_of
from slam_jax.models.pipeline import (
    Pipeline,
    digits_pipeline,
    load_model,
    student_network,
    teacher_network,
)
from slam_jax.models.unet import UNetConfig
from slam_jax.sampler import (
    consistency_timesteps,
    ddim_timesteps,
    gaussian,
    sample_consistency,
    sample_ddim,
)

# (params, token ids [B, L], seed, first, steps) -> images [B, H, W, C] in [-1, 1]. Row i draws
# the noise of (seed, first + i), whatever else is in the batch.
Sampler = Callable[[Any, Int[Array, "B L"], int, int, int], Float[Array, "B H W C"]]


def student_sampler(pipeline: Pipeline, unet: UNetConfig, num_ddim_timesteps: int) -> Sampler:
    """A sampler for the student; compiled once per (steps, batch)."""
    network = student_network(unet)

    @partial(jax.jit, static_argnames="steps")
    def draw(params, tokens, seed, first, steps):
        examples = first + jnp.arange(tokens.shape[0])
        keys = keys_of(seed)
        noise = gaussian(keys.noise, examples, pipeline.latent_shape)
        timesteps = consistency_timesteps(
            steps, num_ddim_timesteps, pipeline.schedule.num_train_timesteps
        )
        context = pipeline.embed_tokens(tokens)
        return pipeline.decode(
            sample_consistency(
                network(params), pipeline.schedule, noise, context, timesteps, keys.steps, examples
            )
        )

    return draw


def teacher_sampler(pipeline: Pipeline, w: float) -> Sampler:
    """A DDIM sampler for the teacher; equal seeds give it the same noise as the student."""
    network = teacher_network(pipeline.unet)

    @partial(jax.jit, static_argnames="steps")
    def draw(params, tokens, seed, first, steps):
        examples = first + jnp.arange(tokens.shape[0])
        noise = gaussian(keys_of(seed).noise, examples, pipeline.latent_shape)
        timesteps = ddim_timesteps(steps, pipeline.schedule.num_train_timesteps)
        contexts = pipeline.contexts(tokens, w)
        return pipeline.decode(
            sample_ddim(network(params), pipeline.schedule, noise, *contexts, timesteps, w)
        )

    return draw


def parse_labels(text: str) -> np.ndarray:
    """Labels from a list such as "0,1,2".

    Raises:
      InputError: something other than digits 0 to 9 between commas.
    """
    words = text.split(",")
    if not all(word.strip() in set("0123456789") for word in words):
        raise InputError(f"--labels {text}: expected digits 0 to 9 between commas, such as 0,1,2")
    return np.array([int(word) for word in words])


def run(arguments: argparse.Namespace) -> Path:
    """Draws what the command line asks for, and returns the picture's path."""
    labels = parse_labels(arguments.labels)
    if arguments.out.suffix != ".png":
        raise InputError(f"--out {arguments.out}: expected a file name that ends in .png")
    folder = arguments.workdir / "export"
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no student here; finish the run with slam_jax.main, or change --workdir"
        )
    if not 0 <= arguments.seed < SEEDS:
        raise InputError(f"--seed {arguments.seed}: expected 0 to {SEEDS - 1}")
    student = load_model(folder)
    method = student.info["method"]
    if not 1 <= arguments.steps <= method["num_ddim_timesteps"]:
        raise InputError(
            f"--steps {arguments.steps}: expected 1 to {method['num_ddim_timesteps']} steps"
        )
    runtime.probe()
    pipeline = digits_pipeline(student.unet, student.scheduler["prediction_type"])
    draw = student_sampler(pipeline, student.unet, method["num_ddim_timesteps"])
    images = draw(student.params, digits.tokenize(labels), arguments.seed, 0, steps=arguments.steps)
    pictures.save(
        pictures.grid({f"{arguments.steps} steps": jax.device_get(images)}), arguments.out
    )
    return arguments.out


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m slam_jax.sample", description="Draw with a distilled student."
    )
    parser.add_argument("--workdir", type=Path, required=True, help="workdir of a finished run")
    parser.add_argument("--steps", type=int, default=4, help="network evaluations per picture")
    parser.add_argument("--labels", default="0,1,2,3,4,5,6,7,8,9", help="digits to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("samples.png"))
    runtime.configure()
    try:
        print(f"wrote {run(parser.parse_args(argv))}")
    except (InputError, BackendError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
