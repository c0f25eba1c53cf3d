"""Noise schedule, prediction types and consistency scalings of a variance-preserving diffusion.

    (1)  x_t    = alpha_t x_0 + sigma_t eps,   alpha_t = sqrt(abar_t),  sigma_t = sqrt(1 - abar_t)
    (2)  eps:     x0 = (x - sigma eps) / alpha
         v:       x0 = (alpha x - sigma v) / (alpha^2 + sigma^2),
                 eps = (alpha v + sigma x) / (alpha^2 + sigma^2)
         sample:  x0 = output
    (3)  c_skip(t) = sd^2 / ((10 t)^2 + sd^2),  c_out(t) = 10 t / sqrt((10 t)^2 + sd^2),  sd = 0.5
    (4)  t_j = (j + 1) k - 1,  k = N / M,  j = 0 .. M-1          (the distillation grid)
    (5)  u = 10 - 10 gamma,  f_i = exp(-ln(10000) i / (half - 1)),
         embedding = concat(sin(1000 u f), cos(1000 u f))

The denominator of (2) is 1 on the PF-ODE. It is not 1 inside a sub-path, so it stays.

`Schedule` is what the rest of the project knows of a noise schedule; SCHEDULES lists the kinds.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slam_jax.base.options import OptionError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0

# A zero-terminal-SNR schedule ends at abar = 0, where a sub-path has no length and (2) is 0 / 0.
# We let it end at 2^-24 instead, as diffusers' Euler scheduler does, and everything stays finite.
SMALLEST_ALPHA_CUMPROD = 2.0**-24


class Schedule(ABC):
    """How much signal and noise there is at a time, and what a network's output means there.

    Times are real numbers in training steps, 0 is (almost) clean.

    Attributes:
      num_train_timesteps: N; times go up to N - 1.
    """

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
    def at(self, t: Array) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """alpha_t and sigma_t at times [B]."""

    @abstractmethod
    def timestep_of(self, noise_to_signal: Float[Array, " B"]) -> Float[Array, " B"]:
        """The time at which sigma / alpha has the given value: the inverse of `noise_to_signal`."""

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
    def training_target(
        self, x0: Float[Array, "B ..."], eps: Float[Array, "B ..."], t: Array
    ) -> Float[Array, "B ..."]:
        """What a network is trained to return for x_t = alpha x0 + sigma eps."""

    def noise_to_signal(self, t: Array) -> Float[Array, " B"]:
        """sigma_t / alpha_t, which grows with t."""
        alpha, sigma = self.at(t)
        return sigma / alpha


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """alpha_t and sigma_t for every training timestep, with alpha^2 + sigma^2 = 1; equation (1).

    Attributes:
      alphas: signal scale for t = 0 .. N-1, [N].
      sigmas: noise scale, [N].
      prediction_type: one of PREDICTION_TYPES.
    """

    alphas: Float[np.ndarray, " N"]
    sigmas: Float[np.ndarray, " N"]
    prediction_type: str = field(metadata={"static": True}, default="epsilon")

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Any, prediction_type: str = "epsilon"
    ) -> "VariancePreserving":
        """Builds the schedule from abar_t, [N], decreasing and in [0, 1].

        Raises:
          ValueError: abar is not decreasing within [0, 1], or the prediction type is unknown.
        """
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type: {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}"
            )
        abar = np.asarray(alphas_cumprod).astype(np.float64)
        if abar.ndim != 1 or not (np.all(np.diff(abar) < 0) and abar[0] < 1 and abar[-1] >= 0):
            raise ValueError(
                "alphas_cumprod: expected a list of values that fall, below 1 and not below 0, got "
                f"shape {abar.shape} with values from {abar.max():g} to {abar.min():g}"
            )
        if abar[-1] == 0:
            abar[-1] = min(SMALLEST_ALPHA_CUMPROD, np.min(abar[:-1], initial=1) / 2)
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        alphas, sigmas = np.sqrt(abar).astype(dtype), np.sqrt(1 - abar).astype(dtype)
        return cls(alphas, sigmas, prediction_type)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return "Flow" not in str(config.get("_class_name"))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "VariancePreserving":
        abar = np.cumprod(1 - _betas(config))
        if config.get("rescale_betas_zero_snr", False):
            abar = _zero_terminal_snr(abar)
        return cls.from_alphas_cumprod(abar, config.get("prediction_type", "epsilon"))

    @property
    def num_train_timesteps(self) -> int:
        return self.alphas.shape[0]

    def at(self, t: Array) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        t = jnp.asarray(t)
        if jnp.issubdtype(t.dtype, jnp.integer):
            return jnp.asarray(self.alphas)[t], jnp.asarray(self.sigmas)[t]
        ratio = jnp.exp(jnp.interp(t, self._timesteps, jnp.log(self.sigmas / self.alphas)))
        alpha = jax.lax.rsqrt(1 + ratio**2)
        return alpha, ratio * alpha

    def timestep_of(self, noise_to_signal: Float[Array, " B"]) -> Float[Array, " B"]:
        # sigma / alpha grows with t, so its logarithm is interpolated between training timesteps.
        logs = jnp.log(self.sigmas / self.alphas)
        return jnp.interp(jnp.log(noise_to_signal), logs, self._timesteps)

    def to_x0_and_eps(self, output, x, alpha, sigma):
        return to_x0_and_eps(output, x, alpha, sigma, self.prediction_type)

    def training_target(self, x0, eps, t):
        alpha, sigma = self.at(t)
        if self.prediction_type == "v_prediction":
            return add_noise(eps, -x0, alpha, sigma)  # alpha eps - sigma x0
        return eps if self.prediction_type == "epsilon" else x0

    @property
    def _timesteps(self) -> Float[Array, " N"]:
        return jnp.arange(self.num_train_timesteps, dtype=self.alphas.dtype)


SCHEDULES: dict[str, type[Schedule]] = {"variance_preserving": VariancePreserving}


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a diffusers `scheduler_config.json` describes.

    Raises:
      ValueError: it is of no kind in SCHEDULES, or a value in it is not known.
    """
    for kind in reversed(SCHEDULES.values()):  # those that were added first
        if kind.reads(config):
            return kind.from_config(config)
    raise ValueError(
        f"{config.get('_class_name')}: a schedule of another kind than {', '.join(SCHEDULES)}"
    )


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    count = config.get("num_train_timesteps", 1000)
    kind = config.get("beta_schedule", "linear")
    if kind == "linear":
        return np.linspace(first, last, count)
    if kind == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, count) ** 2
    if kind == "squaredcos_cap_v2":
        abar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - abar[1:] / abar[:-1], 0.999)
    raise ValueError(
        f"beta_schedule: {kind!r} is not one of linear, scaled_linear, squaredcos_cap_v2"
    )


def _zero_terminal_snr(abar: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(abar) to end at 0 (Lin et al. 2024, arXiv 2305.08891, algorithm 1)."""
    root = np.sqrt(abar)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def per_example(values: Float[Array, " B"], like: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Gives one value per example trailing axes of size 1, so that it broadcasts to `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def to_x0_and_eps(
    output: Float[Array, "B H W C"],
    x: Float[Array, "B H W C"],
    alpha: Float[Array, " B"],
    sigma: Float[Array, " B"],
    prediction_type: str,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W C"]]:
    """Reads a network output as (x0, eps), equation (2); everything here reads it so.

    Args:
      output: what the network returned for `x`.
      x: the network's input, with signal scale alpha and noise scale sigma.
      alpha, sigma: the scales, one per example.
      prediction_type: what the output is, one of PREDICTION_TYPES.
    """
    alpha, sigma = per_example(alpha, x), per_example(sigma, x)
    if prediction_type == "epsilon":
        return (x - sigma * output) / alpha, output
    if prediction_type == "v_prediction":
        squared = alpha**2 + sigma**2
        return (alpha * x - sigma * output) / squared, (alpha * output + sigma * x) / squared
    if prediction_type == "sample":
        return output, (x - alpha * output) / sigma
    raise ValueError(
        f"prediction_type: {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}"
    )


def add_noise(
    x0: Float[Array, "B H W C"],
    eps: Float[Array, "B H W C"],
    alpha: Float[Array, " B"],
    sigma: Float[Array, " B"],
) -> Float[Array, "B H W C"]:
    """alpha x0 + sigma eps, equation (1); also the second half of a DDIM step."""
    return per_example(alpha, x0) * x0 + per_example(sigma, x0) * eps


def boundary_scalings(
    t: Int[Array, " B"], dtype: Any = jnp.float32
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """c_skip and c_out at integer timesteps, equation (3); they are 1 and 0 at t = 0."""
    scaled = TIMESTEP_SCALING * jnp.asarray(t, dtype)
    squared = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / squared, scaled / jnp.sqrt(squared)


def distillation_grid(num_train_timesteps: int, num_ddim_timesteps: int) -> np.ndarray:
    """The M start points of the sub-paths, ascending, equation (4).

    Raises:
      OptionError: M is not between 1 and N, or does not divide N.
    """
    if num_ddim_timesteps < 1 or num_train_timesteps % num_ddim_timesteps:
        raise OptionError(
            "num_ddim_timesteps",
            num_ddim_timesteps,
            f"a divisor of the {num_train_timesteps} training timesteps",
        )
    skip = num_train_timesteps // num_ddim_timesteps
    return np.arange(1, num_ddim_timesteps + 1) * skip - 1


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
