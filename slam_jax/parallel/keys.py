"""One seed, one independent random key for each purpose."""

from typing import NamedTuple

import jax
from jaxtyping import Array

ENCODE = 2**32 - 1  # folded into a step's key for latents; no example has this index


class Keys(NamedTuple):
    """Independent keys of a run.

    Attributes:
      init: a fresh network's weights.
      teacher: the teacher's training; folded with the step and the example there.
      student: the distillation, likewise.
      noise: the samplers' starting noise.
      steps: the noise between a sampler's steps.
      encode: the latents of an image that a sampler starts from.
      own: the noise of the pictures that a teacher draws to be distilled on; another one than
        `noise`, so that nothing is measured on what was trained on.
    """

    init: Array
    teacher: Array
    student: Array
    noise: Array
    steps: Array
    encode: Array
    own: Array


def keys_of(seed: int | Array) -> Keys:
    """The keys of a seed, which may be traced."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))
