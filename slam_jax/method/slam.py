"""SLAM: map every point of a sub-path to the EMA student's answer at its end.

    (1)  x_s = alpha_s x_0 + sigma_s eps,  s = t_j,  e = max(s - k, 0)     start of the sub-path
    (2)  x_e = DDIM(teacher, x_s, s -> e)                                 its end, see `solver`
    (3)  x_g = gamma x_s + (1 - gamma) r x_e,  r = alpha_s / alpha_e      signal scale alpha_s
    (4)  "linear":  sigma_g   = gamma sigma_s + (1 - gamma) r sigma_e
         "paper":   sigma_g^2 = (r sigma_e)^2 + gamma^2 (1 - r^2)
    (5)  loss = | f(x_g, s, gamma) - f-(x_e, e, 1) |,  f- has the EMA weights and no gradient

f is the consistency function, see `consistency`. gamma = 1 throughout is latent consistency
distillation (LCM). "linear" is the true noise scale when x_e is one DDIM step away; both
definitions agree at gamma = 0 and 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slam_jax.base.options import OptionError, option
from slam_jax.method.consistency import (
    CONDITIONINGS,
    DISTANCES,
    Point,
    Student,
    consistency_function,
    distance,
)
from slam_jax.method.method import Examples, Method, Networks, Params, RowKeys, Sums, sums_by_bin
from slam_jax.method.sampler import consistency_timesteps, sample_consistency
from slam_jax.method.schedule import Schedule, add_noise, distillation_grid, per_example
from slam_jax.method.solver import Denoiser, ddim_solve, guided

SIGMAS = ("linear", "paper")
BINS = 4  # of time, and of gamma, for metrics

# How a uniform u in [0, 1), one per example and gamma, becomes gamma. [G] -> [G].
GAMMA_POLICIES: dict[str, Callable[[Array], Array]] = {
    "uniform": lambda u: u,  # the paper
    "one": lambda u: jnp.ones_like(u),  # LCM
    "half": lambda u: jnp.minimum(2 * u, 1),  # half of the draws at 1, half uniform
    "paired": lambda u: u.at[0].set(1.0),  # the first gamma of each sub-path at 1, the others not
}


@dataclass(frozen=True)
class Slam(Method):
    """Sub-path linear approximation. The defaults are the authors' recipe."""

    name: str = option("slam", "name of the method", one_of=("slam",))
    num_ddim_timesteps: int = option(50, "M, the number of sub-paths", at_least=1)
    solver_substeps: int = option(1, "p, teacher evaluations along a sub-path", at_least=1)
    gamma: str = option("uniform", "how gamma is drawn", one_of=tuple(GAMMA_POLICIES))
    gammas_per_subpath: int = option(
        1, "G, gammas of a sub-path, which share the passes of teacher and target", at_least=1
    )
    sigma: str = option("paper", "the noise scale inside a sub-path", one_of=SIGMAS)
    conditioning: str = option(
        "embedding", "what tells the network where on the sub-path it is", one_of=CONDITIONINGS
    )
    distance: str = option(
        "huber", "distance between the answers of student and target", one_of=DISTANCES
    )
    huber_c: float = option(1e-3, "c of the pseudo-Huber distance", above=0)

    def __post_init__(self):
        super().__post_init__()
        if self.gamma == "paired" and self.gammas_per_subpath < 2:
            raise OptionError(
                "gammas_per_subpath", self.gammas_per_subpath, "2 or more with gamma = 'paired'"
            )

    @property
    def gamma_count(self) -> int:
        """G, the gammas drawn for each sub-path; where all would be 1 there is one."""
        return 1 if self.gamma == "one" else self.gammas_per_subpath

    @property
    def tells_gamma(self) -> bool:
        return self.conditioning != "snr"

    def check(self, schedule: Schedule) -> None:
        distillation_grid(schedule.num_train_timesteps, self.num_ddim_timesteps)

    def loss(
        self, params: Params, ema: Params, networks: Networks, examples: Examples, key: Array
    ) -> tuple[Float[Array, " B"], Sums]:
        student, target = networks.student(params), networks.target(ema)
        draws = draw(key, examples.index, examples.latents.shape[1:], self)
        bound = student, target, networks.teacher
        losses = slam_loss(bound, networks.schedule, examples, draws, self)
        t_bins = draws.index * BINS // self.num_ddim_timesteps
        gamma_bins = (draws.gamma * BINS).astype(int).clip(0, BINS - 1)
        return losses.mean(axis=1), {
            **sums_by_bin(losses.mean(axis=1), t_bins, BINS, "loss_t"),
            **sums_by_bin(losses.reshape(-1), gamma_bins.reshape(-1), BINS, "loss_gamma"),
        }

    def drawn(self, key, index, shape, schedule: Schedule) -> dict[str, Array]:
        draws = draw(key, index, shape, self)
        grid = distillation_grid(schedule.num_train_timesteps, self.num_ddim_timesteps)
        return {"t": jnp.asarray(grid)[draws.index], "gamma": draws.gamma}

    def timesteps(self, steps: int, schedule: Schedule, strength: float = 1.0) -> np.ndarray:
        return consistency_timesteps(
            steps, self.num_ddim_timesteps, schedule.num_train_timesteps, strength
        )

    def sample(self, student, schedule, x, context, timesteps, rows: RowKeys):
        return sample_consistency(student, schedule, x, context, timesteps, rows)


class Draws(NamedTuple):
    """The random part of one batch: everything after it is deterministic.

    Attributes:
      index: j, which sub-path, [B], 0 .. M-1.
      gamma: where on it, [B, G] in [0, 1].
      eps: noise, [B, H, W, C].
    """

    index: Int[Array, " B"]
    gamma: Float[Array, "B G"]
    eps: Float[Array, "B H W C"]


def draw(key: Array, examples: Int[Array, " B"], shape: tuple[int, ...], method: Slam) -> Draws:
    """Draws for the examples with these global indices: the same in any batch, on any devices.

    Args:
      key: the step's key.
      examples: global example indices.
      shape: (H, W, C) of one latent.
      method: grid size, gamma policy and number of gammas.
    """

    def one(example):
        index_key, gamma_key, eps_key = jax.random.split(jax.random.fold_in(key, example), 3)
        return Draws(
            jax.random.randint(index_key, (), 0, method.num_ddim_timesteps),
            GAMMA_POLICIES[method.gamma](jax.random.uniform(gamma_key, (method.gamma_count,))),
            jax.random.normal(eps_key, shape),
        )

    return jax.vmap(one)(examples)


def interpolate(
    x_s: Float[Array, "B H W C"],
    x_e: Float[Array, "B H W C"],
    scales_s: tuple[Float[Array, " B"], Float[Array, " B"]],
    scales_e: tuple[Float[Array, " B"], Float[Array, " B"]],
    gamma: Float[Array, " B"],
    sigma: str,
) -> tuple[Float[Array, "B H W C"], Float[Array, " B"]]:
    """x_g and sigma_g, equations (3) and (4).

    Args:
      x_s, x_e: the ends of the sub-path.
      scales_s, scales_e: (alpha, sigma) there.
      gamma: position, 1 is x_s.
      sigma: "linear" or "paper".

    Raises:
      ValueError: another name for sigma.
    """
    (alpha_s, sigma_s), (alpha_e, sigma_e) = scales_s, scales_e
    r = alpha_s / alpha_e
    x_g = per_example(gamma, x_s) * x_s + per_example((1 - gamma) * r, x_e) * x_e
    if sigma == "linear":
        return x_g, gamma * sigma_s + (1 - gamma) * r * sigma_e
    if sigma == "paper":
        return x_g, jnp.sqrt((r * sigma_e) ** 2 + gamma**2 * (1 - r**2))
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
      draws: sub-path, gamma and noise of each example.
      method: the named choices.
    """
    student, target, teacher = networks
    latents, context, null_context, _ = examples
    grid = jnp.asarray(distillation_grid(schedule.num_train_timesteps, method.num_ddim_timesteps))
    s = grid[draws.index]
    e = jnp.maximum(s - schedule.num_train_timesteps // method.num_ddim_timesteps, 0)
    scales_s, scales_e = schedule.at(s), schedule.at(e)
    x_s = add_noise(latents, draws.eps, *scales_s)
    predict = guided(teacher, schedule, context, null_context, method.w)
    x_e = ddim_solve(predict, schedule, x_s, s, e, method.solver_substeps)

    end = Point(x_e, e, jnp.ones_like(draws.gamma[:, 0]), scales_e[1])
    f_target = consistency_function(target, schedule, end, context, method.conditioning)
    f_target, x_e = jax.lax.stop_gradient((f_target, x_e))

    # Several gammas share the teacher's and the target's work: every example becomes G
    # neighbouring rows.
    count = draws.gamma.shape[1]
    x_s, x_e, f_target, context, s, scales_s, scales_e = jax.tree.map(
        lambda a: jnp.repeat(a, count, axis=0), (x_s, x_e, f_target, context, s, scales_s, scales_e)
    )
    gamma = draws.gamma.reshape(-1)
    x_g, sigma_g = interpolate(x_s, x_e, scales_s, scales_e, gamma, method.sigma)
    point = Point(x_g, s, gamma, sigma_g)
    f_student = consistency_function(student, schedule, point, context, method.conditioning)
    return distance(f_student, f_target, method.distance, method.huber_c).reshape(-1, count)
