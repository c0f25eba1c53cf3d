"""What the rest of the project knows of a noise schedule.

    (1)  x_t = alpha_t x_0 + sigma_t eps
    (2)  u = 10 - 10 gamma,  f_i = exp(-ln(10000) i / (half - 1)),
         embedding = concat(sin(1000 u f), cos(1000 u f))

`variance_preserving` and `flow_matching` are the two that there are; `registry` lists them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

Scales = tuple[Float[Array, " B"], Float[Array, " B"]]  # alpha and sigma of a point


# Ways to draw: consistency sampling on a distillation grid, deterministic steps on it, and
# deterministic steps of the schedule's own.
SAMPLERS = ("consistency", "phases", "ddim")


class Schedule(ABC):
    """How much signal and noise there is at a time, and what a network's output means there.

    Times are numbers in training steps; 0 is (almost) clean, and a network is told them.

    Attributes:
      num_train_timesteps: N, which no time exceeds.
      published_slam: whether the paper's noise scale inside a sub-path and its conditioning on
        (s, gamma) are defined.
    """

    published_slam: ClassVar[bool]
    num_train_timesteps: int

    @classmethod
    @abstractmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether a diffusers `scheduler_config.json` describes a schedule of this kind."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Schedule":
        """Builds the schedule from the contents of a `scheduler_config.json`.

        Raises:
          ValueError: a value that is not known.
        """

    @abstractmethod
    def at(self, t: Array) -> Scales:
        """alpha_t and sigma_t at times [B]."""

    @abstractmethod
    def time_of(self, alpha: Float[Array, " B"], sigma: Float[Array, " B"]) -> Float[Array, " B"]:
        """The real-valued time at which sigma_t / alpha_t is sigma / alpha."""

    @abstractmethod
    def norm(self, alpha: Float[Array, " B"], sigma: Float[Array, " B"]) -> Float[Array, " B"]:
        """What a point with these scales is divided by to get those of `time_of`."""

    @abstractmethod
    def end_weight(self, start: Scales, end: Scales) -> Float[Array, " B"]:
        """r, the factor of a sub-path's end in the interpolation between its ends."""

    @abstractmethod
    def to_x0_and_eps(
        self,
        output: Float[Array, "B ..."],
        x: Float[Array, "B ..."],
        alpha: Float[Array, " B"],
        sigma: Float[Array, " B"],
    ) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."]]:
        """Reads a network's output for x, whose scales are alpha and sigma, as (x0, eps)."""

    @abstractmethod
    def boundary_scalings(self, t: Num[Array, " B"], dtype: Any = jnp.float32) -> Scales:
        """c_skip and c_out of the consistency function c_skip x + c_out x0; 1 and 0 at t = 0, or
        c_skip = 0 where x0 is x there anyway."""

    @abstractmethod
    def training_target(
        self, x0: Float[Array, "B ..."], eps: Float[Array, "B ..."], t: Array
    ) -> Float[Array, "B ..."]:
        """What a network is trained to return for x_t = alpha x0 + sigma eps."""

    @abstractmethod
    def training_time(self, key: Array) -> Num[Array, ""]:
        """A time to train a network at."""

    @abstractmethod
    def grid(self, count: int) -> Num[np.ndarray, " M"]:
        """Where `count` sub-paths start, ascending. Each ends where the one before it starts, the
        first at 0.

        Raises:
          OptionError: there is no such grid.
        """

    @abstractmethod
    def teacher_timesteps(self, steps: int) -> Num[np.ndarray, " n"]:
        """Descending times of a teacher that draws in so many steps, the last of them to 0.

        Raises:
          ValueError: impossible numbers.
        """

    @abstractmethod
    def diffusers_scheduler(self, sampler: str, count: int) -> dict[str, Any]:
        """A scheduler of diffusers that draws so: its class, as "_class_name", and those of its
        options that the teacher's `scheduler_config.json` does not decide.

        Args:
          sampler: one of SAMPLERS.
          count: of points of the distillation grid; "ddim" has none.
        """

    def sigmas_for(self, times: Num[np.ndarray, " n"]) -> list[float] | None:
        """What that scheduler has to be given to draw at these times; None: the number of steps."""
        del times
        return None


def per_example(values: Float[Array, " B"], like: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Gives one value per example trailing axes of size 1, so that it broadcasts to `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def add_noise(
    x0: Float[Array, "B H W C"],
    eps: Float[Array, "B H W C"],
    alpha: Float[Array, " B"],
    sigma: Float[Array, " B"],
) -> Float[Array, "B H W C"]:
    """alpha x0 + sigma eps, equation (1); also the second half of a DDIM step."""
    return per_example(alpha, x0) * x0 + per_example(sigma, x0) * eps


def gamma_embedding(gamma: Float[Array, " B"], dim: int) -> Float[Array, "B {dim}"]:
    """Sinusoidal embedding of gamma, equation (5); 1 is what diffusers sends at guidance_scale 1.

    Raises:
      ValueError: dim is odd or below 4.
    """
    if dim % 2 or dim < 4:
        raise ValueError(f"time_cond_proj_dim: {dim} must be an even number of at least 4")
    half = dim // 2
    frequencies = jnp.exp(jnp.arange(half, dtype=gamma.dtype) * -(np.log(10000.0) / (half - 1)))
    angles = 1000.0 * (10.0 - 10.0 * gamma)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
