"""Jitted samplers for student and teacher: from tokens and a seed to images, one program each."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from slam_jax.families.pipeline import (
    Batch,
    Frozen,
    Params,
    Pipeline,
    student_network,
    teacher_network,
)
from slam_jax.method.method import Method, RowKeys, gaussian
from slam_jax.method.sampler import sample_ddim
from slam_jax.method.schedule import add_noise
from slam_jax.method.solver import guided
from slam_jax.models import functional
from slam_jax.parallel.keys import keys_of
from slam_jax.parallel.sharding import AXES, replicate, replicated

# (frozen, params, batch of prompts, start, steps=...) -> images [B, H, W, C] in [-1, 1]. `start` is
# (seed, first): row i draws the noise of (seed, first + i), whatever else is in the batch.
Sampler = Callable[..., Float[Array, "B H W C"]]
Start = tuple[Any, Any]


def student_sampler(
    pipeline: Pipeline, network: Any, method: Method, dtype: str = "float32"
) -> Sampler:
    """A sampler for the student; compiled once per (steps, strength, batch).

    With "images" in its batch it goes on from these (image-to-image): they are noised to the first
    timestep, which `strength` in (0, 1] chooses.

    Args:
      pipeline: the student's surroundings.
      network: the student's configuration.
      method: how it was distilled.
      dtype: what its denoiser computes in.
    """
    bind, schedule = student_network(pipeline, network), pipeline.schedule

    @partial(jax.jit, static_argnames=("steps", "strength"))
    def draw(frozen: Frozen, params: Params, batch: Batch, start: Start, steps, strength=1.0):
        count = batch["tokens"].shape[0]
        seed, first = start
        examples, keys = first + jnp.arange(count), keys_of(seed)
        timesteps = method.timesteps(steps, schedule, strength)
        x = gaussian(keys.noise, examples, pipeline.latent_shape)
        if "images" in batch:
            x0 = pipeline.latents(frozen, batch, keys.encode, examples)
            x = add_noise(x0, x, *schedule.at(jnp.full(count, timesteps[0])))
        context, _ = pipeline.contexts(frozen, batch, w=0)
        student, rows = bind(functional.cast(params, dtype)), RowKeys(keys.steps, examples)
        latents = method.sample(student, schedule, x, context, timesteps, rows)
        return pipeline.decode(frozen, latents)

    return draw


def teacher_latents(
    pipeline: Pipeline, w: float, dtype: str = "float32"
) -> Callable[..., Float[Array, "B H W C"]]:
    """(frozen, params, batch of prompts, key, examples, steps) -> latents that the teacher draws by
    DDIM; row i starts from the noise of (key, examples[i]).

    Args:
      pipeline: the teacher and its surroundings.
      w: guidance in LCM form, the usual scale minus 1.
      dtype: what its denoiser computes in.
    """
    bind, schedule = teacher_network(pipeline), pipeline.schedule

    def draw(frozen: Frozen, params: Params, batch: Batch, key: Array, examples, steps: int):
        noise = gaussian(key, examples, pipeline.latent_shape)
        timesteps = schedule.teacher_timesteps(steps)
        contexts = pipeline.contexts(frozen, batch, w)
        predict = guided(bind(functional.cast(params, dtype)), schedule, *contexts, w)
        return sample_ddim(predict, schedule, noise, timesteps)

    return draw


def teacher_sampler(pipeline: Pipeline, w: float, dtype: str = "float32") -> Sampler:
    """A DDIM sampler for the teacher; equal seeds give it the same noise as the student.

    Args:
      pipeline, w, dtype: as `teacher_latents` has them.
    """
    latents = teacher_latents(pipeline, w, dtype)

    @partial(jax.jit, static_argnames="steps")
    def draw(frozen: Frozen, params: Params, batch: Batch, start: Start, steps):
        seed, first = start
        examples = first + jnp.arange(batch["tokens"].shape[0])
        x0 = latents(frozen, params, batch, keys_of(seed).noise, examples, steps)
        return pipeline.decode(frozen, x0)

    return draw


def on_mesh(sampler: Callable[..., Any], mesh: Mesh, dtype: str) -> Callable[..., Any]:
    """The sampler for weights that are split over a mesh, in whose batches every device draws its
    share; all processes get all pictures. Rows keep their noise, whatever the mesh.

    Args:
      sampler: a Sampler, or one whose output has several parts, for weights that are not split.
      mesh: devices.
      dtype: what the sampler's denoiser computes in, and its weights travel in.
    """

    @cache
    def program(**options):
        def rows_of_device(frozen, params, batch, start):
            seed, first = start
            count = batch["tokens"].shape[0]
            return sampler(
                frozen, params, batch, (seed, first + jax.lax.axis_index(AXES) * count), **options
            )

        whole, rows = PartitionSpec(), PartitionSpec(AXES)
        specs = whole, whole, rows, whole
        spread = jax.shard_map(
            rows_of_device, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False
        )
        return jax.jit(spread, out_shardings=replicated(mesh))

    def draw(frozen: Frozen, params: Params, batch: Batch, start: Start, **options):
        count = len(batch["tokens"])
        filled = np.minimum(np.arange(count + -count % mesh.size), count - 1)
        whole = {name: np.asarray(array)[filled] for name, array in batch.items()}
        params = replicate(functional.cast(params, dtype), mesh)
        images = program(**options)(replicate(frozen, mesh), params, whole, start)
        return jax.tree.map(lambda array: array[:count], images)

    return draw
