"""Jitted samplers for student and teacher: from tokens and a seed to images, one program each."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from slam_jax.families.family import (
    Batch,
    Frozen,
    Params,
    Pipeline,
    student_network,
    teacher_network,
)
from slam_jax.method.sampler import (
    consistency_timesteps,
    ddim_timesteps,
    gaussian,
    sample_consistency,
    sample_ddim,
)
from slam_jax.method.schedule import add_noise
from slam_jax.models import functional
from slam_jax.models.unet import UNetConfig
from slam_jax.parallel.keys import keys_of
from slam_jax.parallel.sharding import replicate

# (frozen, params, batch of prompts, seed, first, steps) -> images [B, H, W, C] in [-1, 1]. Row i
# draws the noise of (seed, first + i), whatever else is in the batch.
Sampler = Callable[..., Float[Array, "B H W C"]]


def student_sampler(
    pipeline: Pipeline, unet: UNetConfig, num_ddim_timesteps: int, dtype: str = "float32"
) -> Sampler:
    """A sampler for the student; compiled once per (steps, strength, batch).

    With "images" in its batch it goes on from these (image-to-image): they are noised to the first
    timestep, which `strength` in (0, 1] chooses.

    Args:
      pipeline: the student's surroundings.
      unet: the student's configuration.
      num_ddim_timesteps: M of its distillation.
      dtype: what the UNet computes in.
    """
    network = student_network(unet, execution=pipeline.execution)
    schedule = pipeline.schedule

    @partial(jax.jit, static_argnames=("steps", "strength"))
    def draw(frozen: Frozen, params: Params, batch: Batch, seed, first, steps, strength=1.0):
        count = batch["tokens"].shape[0]
        examples, keys = first + jnp.arange(count), keys_of(seed)
        timesteps = consistency_timesteps(
            steps, num_ddim_timesteps, schedule.num_train_timesteps, strength
        )
        x = gaussian(keys.noise, examples, pipeline.latent_shape)
        if "images" in batch:
            x0 = pipeline.latents(frozen, batch, keys.encode, examples)
            x = add_noise(x0, x, *schedule.at(jnp.full(count, timesteps[0])))
        context, _ = pipeline.contexts(frozen, batch, w=0)
        student = network(functional.cast(params, dtype))
        latents = sample_consistency(student, schedule, x, context, timesteps, keys.steps, examples)
        return pipeline.decode(frozen, latents)

    return draw


def teacher_sampler(pipeline: Pipeline, w: float, dtype: str = "float32") -> Sampler:
    """A DDIM sampler for the teacher; equal seeds give it the same noise as the student.

    Args:
      pipeline: the teacher and its surroundings.
      w: guidance in LCM form, the usual scale minus 1.
      dtype: what the UNet computes in.
    """
    network = teacher_network(pipeline.unet, pipeline.execution)
    schedule = pipeline.schedule

    @partial(jax.jit, static_argnames="steps")
    def draw(frozen: Frozen, params: Params, batch: Batch, seed, first, steps):
        examples = first + jnp.arange(batch["tokens"].shape[0])
        noise = gaussian(keys_of(seed).noise, examples, pipeline.latent_shape)
        timesteps = ddim_timesteps(steps, schedule.num_train_timesteps)
        contexts = pipeline.contexts(frozen, batch, w)
        teacher = network(functional.cast(params, dtype))
        return pipeline.decode(
            frozen, sample_ddim(teacher, schedule, noise, *contexts, timesteps, w)
        )

    return draw


def on_whole(sampler: Sampler, mesh: Mesh, dtype: str) -> Sampler:
    """The sampler for weights that are split over a mesh: every device draws everything.

    Args:
      sampler: for weights that are not split.
      mesh: devices.
      dtype: what the sampler's UNet computes in, and its weights travel in.
    """

    def draw(frozen: Frozen, params: Params, *arguments, **options):
        params = functional.cast(params, dtype)
        return sampler(replicate(frozen, mesh), replicate(params, mesh), *arguments, **options)

    return draw
