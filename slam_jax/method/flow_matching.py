"""Flow matching: the straight paths of Stable Diffusion 3, FLUX and their kin.

    (1)  x_t = (1 - t) x_0 + t eps,   t in [0, 1];  alpha_t = 1 - t,  sigma_t = t
    (2)  the network predicts v = eps - x_0:   x0 = (x - sigma v) / (alpha + sigma),
                                               eps = (x + alpha v) / (alpha + sigma)
    (3)  shift(u) = kappa u / (1 + (kappa - 1) u)
    (4)  t_j = shift((j + 1) / M),  j = 0 .. M-1                   (the distillation grid)

A teacher's step from s to e by the (x0, eps) of (2) is Euler's, x_e = x_s - (s - e) v. Times are
counted in training steps here as everywhere, N t, which is what these networks are told.

SLAM on it. The sub-path approximation maps the chord between x_s and x_e to the answer at its end.
A chord point of the published form, gamma x_s + (1 - gamma) r x_e with r = alpha_s / alpha_e, has
no signal at s = 1, where r = 0. Divided by alpha + sigma, which brings a point to the time of its
noise-to-signal ratio, it is a point of the straight line between the ends,

    (5)  x_g = g x_s + (1 - g) x_e  with  t_g = g s + (1 - g) e,  g in [0, 1],

for some g. So the line is drawn from directly: r = 1 in `slam` (3), (4), whose scales are then
those of time t_g. Every point lies on a time of its own, so that the network needs to be told
nothing but t_g: no embedding of gamma, no new weights. f(x, t) = x - t v is the x0 of (2); at t = 0
it is x. gamma = 1 is latent consistency distillation of a flow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from slam_jax.base.options import OptionError
from slam_jax.method.schedule import Scales, Schedule, per_example

FLOW = "flow"  # the prediction type's name: the velocity v of (2)
# Other ways to place a sampler's times, which no teacher that is read here has.
NOT_READ = (
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlowMatching(Schedule):
    """Straight paths between pictures and noise; equation (1).

    Attributes:
      shift: kappa, which moves a grid to larger times; equation (3).
      num_train_timesteps: N.
    """

    published_slam: ClassVar[bool] = False
    shift: float = field(metadata={"static": True}, default=1.0)
    num_train_timesteps: int = field(metadata={"static": True}, default=1000)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return str(config.get("_class_name")).startswith("FlowMatch")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "FlowMatching":
        for name in NOT_READ:
            if config.get(name):
                raise ValueError(f"{name}: {config[name]!r}, expected none: it is not supported")
        shift, count = config.get("shift", 1.0), config.get("num_train_timesteps", 1000)
        kind = config.get("prediction_type", FLOW)
        if not (isinstance(shift, int | float) and 0 < shift < np.inf):
            raise ValueError(f"shift: {shift!r}, expected a number above 0")
        if not (isinstance(count, int) and count > 0):
            raise ValueError(f"num_train_timesteps: {count!r}, expected a whole number above 0")
        if kind != FLOW:
            raise ValueError(f"prediction_type: {kind!r}, expected {FLOW} or none")
        return cls(shift, count)

    def at(self, t: Array) -> Scales:
        sigma = jnp.asarray(t) / self.num_train_timesteps
        return 1 - sigma, sigma

    def time_of(self, alpha: Float[Array, " B"], sigma: Float[Array, " B"]) -> Float[Array, " B"]:
        return self.num_train_timesteps * sigma / (alpha + sigma)

    def norm(self, alpha, sigma):
        return alpha + sigma

    def end_weight(self, start: Scales, end: Scales) -> Float[Array, " B"]:
        return jnp.ones_like(start[0])

    def to_x0_and_eps(self, output, x, alpha, sigma):
        alpha, sigma = per_example(alpha, x), per_example(sigma, x)
        total = alpha + sigma
        return (x - sigma * output) / total, (x + alpha * output) / total

    def boundary_scalings(self, t, dtype=jnp.float32):
        return jnp.zeros_like(t, dtype), jnp.ones_like(t, dtype)

    def training_target(self, x0, eps, t):
        del t
        return eps - x0

    def training_time(self, key: Array) -> Float[Array, ""]:
        """Logit-normal and shifted (Esser et al. 2024, arXiv 2403.03206, section 3.1)."""
        return self.num_train_timesteps * self.shifted(jax.nn.sigmoid(jax.random.normal(key)))

    def grid(self, count: int) -> Float[np.ndarray, " M"]:
        if count < 1:
            raise OptionError("num_ddim_timesteps", count, "1 or more")
        return self._times(np.arange(1, count + 1) / count)

    def teacher_timesteps(self, steps: int) -> Float[np.ndarray, " n"]:
        """Those of diffusers' FlowMatchEulerDiscreteScheduler, which shifts its last time, 1 / N,
        once more than the others."""
        if not 1 <= steps <= self.num_train_timesteps:
            raise ValueError(f"steps: {steps} must be between 1 and {self.num_train_timesteps}")
        return self._times(np.linspace(1, self.shifted(1 / self.num_train_timesteps), steps))

    def diffusers_scheduler(self, sampler: str, count: int) -> dict[str, Any]:
        del count  # the grid is given as `sigmas`
        kind = "LCM" if sampler == "consistency" else "EulerDiscrete"
        return {
            "_class_name": f"FlowMatch{kind}Scheduler",
            "num_train_timesteps": self.num_train_timesteps,
            "shift": self.shift,
        }

    def sigmas_for(self, times: Num[np.ndarray, " n"]) -> list[float]:
        """Times before the shift, u in (3), in [0, 1]."""
        sigma = np.asarray(times, np.float64) / self.num_train_timesteps
        unshifted = sigma / (self.shift - (self.shift - 1) * sigma)
        return [round(float(u), 6) for u in unshifted]

    def shifted(self, u: Any) -> Any:
        """Equation (3)."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def _times(self, u: Num[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        return (self.num_train_timesteps * self.shifted(u)).astype(dtype)
