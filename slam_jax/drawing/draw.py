"""Draws pictures with a loaded model, a batch at a time, each batch in one program."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8
from tqdm import tqdm

from slam_jax.base.errors import InputError
from slam_jax.drawing.samplers import Start, student_sampler, teacher_sampler
from slam_jax.families.family import Model
from slam_jax.families.pipeline import Batch, Frozen, Params

TEACHER_GUIDANCE, MOST_GUIDANCE = 7.5, 1000
TEACHER_STEPS = 25  # fewer spoil the pictures of most teachers
# (frozen, params, batch of prompts, start) -> pictures, and whether each was finite before.
Draw = Callable[[Frozen, Params, Batch, Start], tuple[UInt8[Array, "B H W C"], Bool[Array, " B"]]]


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn.

    Attributes:
      steps: network evaluations for each (a guided teacher: twice as many).
      guidance: the usual scale, of teachers only.
      strength: how much of a picture is drawn anew, in (0, 1].
      dtype: what the denoiser computes in.
    """

    steps: int = 4
    guidance: float = 1.0
    strength: float = 1.0
    dtype: str = "float32"


def choose_guidance(model: Model, asked: float | None) -> float:
    """The usual guidance scale: a teacher's default is 7.5, a student's is 1 and nothing else.

    Raises:
      InputError: guidance for a student.
    """
    if model.method is None:
        guidance = TEACHER_GUIDANCE if asked is None else asked
        if not 1 <= guidance <= MOST_GUIDANCE:
            expected = f"1 (none) to {MOST_GUIDANCE}"
            raise InputError(f"--guidance {guidance:g}: expected {expected}")
        return guidance
    if asked not in (None, 1.0):
        told = f"told another gamma, {1 - (asked - 1) / 10:g} in place of 1"
        told = told if model.method and model.method.tells_gamma else "guided twice"
        raise InputError(
            f"--guidance {asked:g}: a student has its guidance built in; it would be {told}; leave "
            "the option out"
        )
    return 1.0


def said_of_teacher(model: Model, guidance: float, steps: int) -> str:
    """What to know of pictures that a teacher draws as if it were a student; "" of a student."""
    if model.is_student:
        return ""
    said = f"by a teacher, with guidance {guidance:g}"
    if steps >= TEACHER_STEPS:
        return said
    return f"{said}; teachers need more steps than {steps}, {TEACHER_STEPS} to 50"


def make_sampler(model: Model, settings: Settings) -> Draw:
    """Draws uint8 pictures in one program.

    Raises:
      InputError: impossible numbers of steps.
    """
    pipeline, steps, dtype = model.pipeline, settings.steps, settings.dtype
    try:
        if model.method is None:
            pipeline.schedule.teacher_timesteps(steps)
            draw = partial(teacher_sampler(pipeline, settings.guidance - 1, dtype), steps=steps)
        else:
            model.method.timesteps(steps, pipeline.schedule, settings.strength)
            draw = student_sampler(pipeline, pipeline.network, model.method, dtype)
            draw = partial(draw, steps=steps, strength=settings.strength)
    except ValueError as error:
        raise InputError(f"--{error}") from error

    @jax.jit
    def draw_uint8(frozen, params, batch, start):
        images = draw(frozen, params, batch, start)
        finite = jnp.isfinite(images).all(axis=(1, 2, 3))
        return jnp.round((images + 1) * 127.5).astype(jnp.uint8), finite

    return draw_uint8


def batches_of(
    batch: Mapping[str, np.ndarray], size: int
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(first, count, rows first .. first + size - 1); the last batch repeats its end to be full."""
    total = len(batch["tokens"])
    for first in range(0, total, size):
        rows = np.minimum(np.arange(first, first + size), total - 1)
        yield first, min(size, total - first), {name: a[rows] for name, a in batch.items()}


def draw_all(
    model: Model, draw: Draw, batch: Mapping[str, Any], seed: int, size: int
) -> Iterator[UInt8[np.ndarray, "H W C"]]:
    """The pictures one by one; row i has the noise of (seed, i).

    Raises:
      InputError: a picture is not finite.
    """
    params, frozen = jax.device_put((model.params, model.frozen))
    with tqdm(desc="drawing", total=len(batch["tokens"]), unit="picture") as bar:
        for first, count, part in batches_of(batch, size):
            images = draw_finite(draw, (frozen, params), part, (seed, first))
            bar.update(count)
            yield from images[:count]


def draw_finite(
    draw: Draw, weights: tuple[Frozen, Params], batch: Mapping[str, Any], start: Start
) -> UInt8[np.ndarray, "B H W C"]:
    """The pictures of one batch, in the host's memory.

    Args:
      draw: of `make_sampler`.
      weights: around the denoiser, and its own.
      batch: of prompts.
      start: (seed, first): row i has the noise of (seed, first + i).

    Raises:
      InputError: a picture is not finite.
    """
    images, finite = jax.device_get(draw(*weights, batch, start))
    if not finite.all():
        raise InputError(
            f"picture {start[1] + int(finite.argmin())} is not finite: the weights are damaged, or "
            "--dtype is too coarse for them"
        )
    return images
