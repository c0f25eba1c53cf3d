"""SLAM: map every point of a sub-path to the EMA student's answer at its end.

    (1)  x_s = alpha_s x_0 + sigma_s eps,  s = t_j,  e = max(s - k, 0)     start of the sub-path
    (2)  x_e = DDIM(teacher, x_s, s -> e)                                 its end, see `sub_path`
    (3)  x_g = gamma x_s + (1 - gamma) r x_e,   r = alpha_s / alpha_e
         alpha_g = gamma alpha_s + (1 - gamma) r alpha_e                  which is alpha_s
    (4)  "linear":  sigma_g   = gamma sigma_s + (1 - gamma) r sigma_e
         "paper":   sigma_g^2 = (r sigma_e)^2 + gamma^2 (1 - r^2)
    (5)  loss = | f(x_g, s, gamma) - f-(x_e, e, 1) |,  f- has the EMA weights and no gradient

f is the consistency function, see `consistency`. gamma = 1 throughout is latent consistency
distillation (LCM). "linear" is the true noise scale when x_e is one DDIM step away; both
definitions agree at gamma = 0 and 1. In flow matching r = 1 and "linear" is all there is, see
`flow_matching`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slam_jax.base.options import OptionError, check, option
from slam_jax.method.consistency import CONDITIONINGS, Point, Student, consistency_function
from slam_jax.method.method import Examples, Networks, Params, Sums, sums_by_bin
from slam_jax.method.schedule import Scales, Schedule, per_example
from slam_jax.method.solver import Denoiser
from slam_jax.method.sub_path import BINS, Starts, SubPathMethod, draw_starts, sub_paths

SIGMAS = ("linear", "paper")

# How a uniform u in [0, 1), one per example and gamma, becomes gamma. [G] -> [G].
GAMMA_POLICIES: dict[str, Callable[[Array], Array]] = {
    "uniform": lambda u: u,  # the paper
    "one": lambda u: jnp.ones_like(u),  # LCM
    "half": lambda u: jnp.minimum(2 * u, 1),  # half of the draws at 1, half uniform
    "paired": lambda u: u.at[0].set(1.0),  # the first gamma of each sub-path at 1, the others not
}


@dataclass(frozen=True)
class Slam(SubPathMethod):
    """Sub-path linear approximation. The defaults are the authors' recipe."""

    title: ClassVar[str] = "SLAM (sub-path linear approximation, arXiv 2404.13903)"
    name: str = option("slam", "name of the method", one_of=("slam",))
    gamma: str = option("uniform", "how gamma is drawn", one_of=tuple(GAMMA_POLICIES))
    gammas_per_subpath: int = option(
        1,
        "G, gammas of a sub-path, which share the passes of teacher and target",
        at_least=1,
        at_most=1000,
    )
    sigma: str = option("paper", "the noise scale inside a sub-path", one_of=SIGMAS)
    conditioning: str = option(
        "embedding", "what tells the network where on the sub-path it is", one_of=CONDITIONINGS
    )

    def __post_init__(self):
        super().__post_init__()
        if self.gamma == "paired" and self.gammas_per_subpath < 2:
            raise OptionError(
                "gammas_per_subpath", self.gammas_per_subpath, "2 or more with gamma = 'paired'"
            )

    def check(self, schedule: Schedule) -> None:
        super().check(schedule)
        if not schedule.published_slam:
            check(self.sigma == "linear", "sigma", self.sigma, "linear for a flow-matching teacher")
            told = self.conditioning
            check(told == "snr", "conditioning", told, "snr for a flow-matching teacher")

    @property
    def gamma_count(self) -> int:
        """G, the gammas drawn for each sub-path; where all would be 1 there is one."""
        return 1 if self.gamma == "one" else self.gammas_per_subpath

    @property
    def tells_gamma(self) -> bool:
        return self.conditioning != "snr"

    def loss(
        self, params: Params, ema: Params, networks: Networks, examples: Examples, key: Array
    ) -> tuple[Float[Array, " B"], Sums]:
        student, target = networks.student(params), networks.target(ema)
        draws = draw(key, examples.index, examples.latents.shape[1:], self)
        bound = student, target, networks.teacher
        losses = slam_loss(bound, networks.schedule, examples, draws, self)
        gamma_bins = (draws.gamma * BINS).astype(int).clip(0, BINS - 1)
        return losses.mean(axis=1), {
            **self.sums_by_time(losses.mean(axis=1), draws.starts.index),
            **sums_by_bin(losses.reshape(-1), gamma_bins.reshape(-1), BINS, "loss_gamma"),
        }

    def drawn(self, key, index, shape, schedule: Schedule) -> dict[str, Array]:
        gamma = draw(key, index, shape, self).gamma
        return {**super().drawn(key, index, shape, schedule), "gamma": gamma}


class Draws(NamedTuple):
    """The random part of one batch: everything after it is deterministic.

    Attributes:
      starts: of the sub-paths.
      gamma: where on them, [B, G] in [0, 1].
    """

    starts: Starts
    gamma: Float[Array, "B G"]


def draw(key: Array, examples: Int[Array, " B"], shape: tuple[int, ...], method: Slam) -> Draws:
    """Draws for the examples with these global indices: the same in any batch, on any devices.

    Args:
      key: the step's key.
      examples: global example indices.
      shape: (H, W, C) of one latent.
      method: grid size, guidance, gamma policy and number of gammas.
    """

    def gammas(key):
        return GAMMA_POLICIES[method.gamma](jax.random.uniform(key, (method.gamma_count,)))

    starts, keys = draw_starts(key, examples, shape, method)
    return Draws(starts, jax.vmap(gammas)(keys))


def interpolate(
    x_s: Float[Array, "B H W C"],
    x_e: Float[Array, "B H W C"],
    scales: tuple[Scales, Scales, Float[Array, " B"]],
    gamma: Float[Array, " B"],
    sigma: str,
) -> tuple[Float[Array, "B H W C"], Float[Array, " B"], Float[Array, " B"]]:
    """x_g, alpha_g and sigma_g, equations (3) and (4).

    Args:
      x_s, x_e: the ends of the sub-path.
      scales: (alpha, sigma) at its start and at its end; and r.
      gamma: position, 1 is x_s.
      sigma: "linear" or "paper".

    Raises:
      ValueError: another name for sigma.
    """
    (alpha_s, sigma_s), (alpha_e, sigma_e), r = scales
    x_g = per_example(gamma, x_s) * x_s + per_example((1 - gamma) * r, x_e) * x_e
    alpha_g = gamma * alpha_s + (1 - gamma) * r * alpha_e
    if sigma == "linear":
        return x_g, alpha_g, gamma * sigma_s + (1 - gamma) * r * sigma_e
    if sigma == "paper":
        return x_g, alpha_g, jnp.sqrt((r * sigma_e) ** 2 + gamma**2 * (1 - r**2))
    raise ValueError(f"sigma: {sigma!r} is neither 'linear' nor 'paper'")


def slam_loss(
    networks: tuple[Student, Student, Denoiser],
    schedule: Schedule,
    examples: Examples,
    draws: Draws,
    method: Slam,
) -> Float[Array, "B G"]:
    """The loss of every example and gamma, equations (1) to (5); unreduced.

    Args:
      networks: the student being trained, the same network with the EMA weights, and the frozen
        teacher.
      schedule: the teacher's noise schedule.
      examples: clean latents and their prompts.
      draws: start of the sub-path and gamma of each example.
      method: the named choices.
    """
    student, target, teacher = networks
    context, conditioning = examples.context, method.conditioning
    s, e, x_s, x_e = sub_paths(teacher, schedule, examples, draws.starts, method)
    scales_s, scales_e = schedule.at(s), schedule.at(e)
    scales = scales_s, scales_e, schedule.end_weight(scales_s, scales_e)
    end = Point(x_e, e, jnp.ones_like(draws.gamma[:, 0]), *scales_e)
    f_target = consistency_function(target, schedule, end, context, conditioning)

    # Several gammas share the teacher's and the target's work: every example becomes G
    # neighbouring rows.
    count = draws.gamma.shape[1]
    x_s, x_e, f_target, context, s, scales = jax.tree.map(
        lambda a: jnp.repeat(a, count, axis=0), (x_s, x_e, f_target, context, s, scales)
    )
    gamma = draws.gamma.reshape(-1)
    x_g, alpha_g, sigma_g = interpolate(x_s, x_e, scales, gamma, method.sigma)
    point = Point(x_g, s, gamma, alpha_g, sigma_g)
    f_student = consistency_function(student, schedule, point, context, conditioning)
    return method.distances(f_student, f_target).reshape(-1, count)
