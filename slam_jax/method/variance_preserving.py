"""The variance-preserving diffusion of Stable Diffusion 1.x, 2.x and SDXL.

    (1)  x_t    = alpha_t x_0 + sigma_t eps,   alpha_t = sqrt(abar_t),  sigma_t = sqrt(1 - abar_t)
    (2)  eps:     x0 = (x - sigma eps) / alpha
         v:       x0 = (alpha x - sigma v) / (alpha^2 + sigma^2),
                 eps = (alpha v + sigma x) / (alpha^2 + sigma^2)
         sample:  x0 = output
    (3)  c_skip(t) = sd^2 / ((10 t)^2 + sd^2),  c_out(t) = 10 t / sqrt((10 t)^2 + sd^2),  sd = 0.5
    (4)  t_j = (j + 1) k - 1,  k = N / M,  j = 0 .. M-1          (the distillation grid)

The denominator of (2) is 1 on the PF-ODE. It is not 1 inside a sub-path, so it stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slam_jax.base.options import OptionError
from slam_jax.method.schedule import Scales, Schedule, add_noise, per_example

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0

# A zero-terminal-SNR schedule ends at abar = 0, where a sub-path has no length and (2) is 0 / 0.
# We let it end at 2^-24 instead, as diffusers' Euler scheduler does, and everything stays finite.
SMALLEST_ALPHA_CUMPROD = 2.0**-24

MOST_TIMESTEPS = 100_000


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """alpha_t and sigma_t for every training timestep, with alpha^2 + sigma^2 = 1; equation (1).

    Attributes:
      alphas: signal scale for t = 0 .. N-1, [N].
      sigmas: noise scale, [N].
      prediction_type: one of PREDICTION_TYPES.
    """

    published_slam: ClassVar[bool] = True
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

    def time_of(self, alpha: Float[Array, " B"], sigma: Float[Array, " B"]) -> Float[Array, " B"]:
        # sigma / alpha grows with t, so its logarithm is interpolated between training timesteps.
        logs = jnp.log(self.sigmas / self.alphas)
        return jnp.interp(jnp.log(sigma / alpha), logs, self._timesteps)

    def norm(self, alpha, sigma):
        return jnp.sqrt(alpha**2 + sigma**2)

    def end_weight(self, start: Scales, end: Scales) -> Float[Array, " B"]:
        return start[0] / end[0]  # which brings it to the signal scale of the start

    def to_x0_and_eps(self, output, x, alpha, sigma):
        return to_x0_and_eps(output, x, alpha, sigma, self.prediction_type)

    def boundary_scalings(self, t, dtype=jnp.float32):
        return boundary_scalings(t, dtype)

    def training_target(self, x0, eps, t):
        alpha, sigma = self.at(t)
        if self.prediction_type == "v_prediction":
            return add_noise(eps, -x0, alpha, sigma)  # alpha eps - sigma x0
        return eps if self.prediction_type == "epsilon" else x0

    def training_time(self, key):
        return jax.random.randint(key, (), 0, self.num_train_timesteps)

    def grid(self, count):
        return distillation_grid(self.num_train_timesteps, count)

    def diffusers_scheduler(self, sampler: str, count: int) -> dict[str, Any]:
        grid = {"original_inference_steps": count}
        options = {
            "consistency": {
                "_class_name": "LCMScheduler",
                **grid,
                "timestep_scaling": TIMESTEP_SCALING,
            },
            # The pipelines' default, eta = 0, makes it deterministic: steps to the next time.
            "phases": {"_class_name": "TCDScheduler", **grid},
            "ddim": {
                "_class_name": "DDIMScheduler",
                "timestep_spacing": "trailing",
                "set_alpha_to_one": True,
            },
        }
        return options[sampler]

    def teacher_timesteps(self, steps):
        return ddim_timesteps(steps, self.num_train_timesteps)

    @property
    def _timesteps(self) -> Float[Array, " N"]:
        return jnp.arange(self.num_train_timesteps, dtype=self.alphas.dtype)


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    count = config.get("num_train_timesteps", 1000)
    if not (type(count) is int and 1 < count <= MOST_TIMESTEPS):
        raise ValueError(f"num_train_timesteps: {count!r}, expected 2 to {MOST_TIMESTEPS}")
    for name, beta in (("beta_start", first), ("beta_end", last)):
        if not (isinstance(beta, int | float) and 0 < beta < 1):
            raise ValueError(f"{name}: {beta!r}, expected a number between 0 and 1")
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


def ddim_timesteps(steps: int, num_train_timesteps: int = 1000) -> np.ndarray:
    """Descending timesteps with diffusers' "trailing" spacing: from N - 1, every N / n.

    Raises:
      ValueError: steps is not in 1 .. N.
    """
    if not 1 <= steps <= num_train_timesteps:
        raise ValueError(f"steps: {steps} must be between 1 and {num_train_timesteps}")
    return (
        np.round(np.arange(num_train_timesteps, 0, -num_train_timesteps / steps)).astype(np.int64)[
            :steps
        ]
        - 1
    )
