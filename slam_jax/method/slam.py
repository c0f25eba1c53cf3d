"""The SLAM loss: map every point of a sub-path to the EMA student's answer at its end.

    (1)  x_s = alpha_s x_0 + sigma_s eps,  s = t_j,  e = max(s - k, 0)     start of the sub-path
    (2)  x_e = DDIM(teacher, x_s, s -> e)                                 its end, see `solver`
    (3)  x_g = gamma x_s + (1 - gamma) r x_e,  r = alpha_s / alpha_e      signal scale alpha_s
    (4)  "linear":  sigma_g   = gamma sigma_s + (1 - gamma) r sigma_e
         "paper":   sigma_g^2 = (r sigma_e)^2 + gamma^2 (1 - r^2)
    (5)  n_g = sqrt(alpha_s^2 + sigma_g^2),  sigma(t_g) / alpha(t_g) = sigma_g / alpha_s
         SNR-matched conditioning: the network sees x_g / n_g at the real-valued time t_g
    (6)  f(x_g, s, gamma) = c_skip(s) x_g + c_out(s) x0(x_g, network output; alpha_s, sigma_g)
    (7)  loss = | f(x_g, s, gamma) - f-(x_e, e, 1) |,  f- has the EMA weights and no gradient

gamma = 1 throughout is latent consistency distillation (LCM). "linear" is the true noise scale
when x_e is one DDIM step away; both definitions agree at gamma = 0 and 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slam_jax.method.schedule import (
    NoiseSchedule,
    add_noise,
    boundary_scalings,
    distillation_grid,
    per_example,
    to_x0_and_eps,
)
from slam_jax.method.solver import Context, Denoiser, ddim_solve

# (x [B, H, W, C], t [B], context, gamma [B]) -> output [B, H, W, C]
Student = Callable[[Array, Array, Context, Array], Array]

SIGMAS = ("linear", "paper")
CONDITIONINGS = ("embedding", "snr", "both")
LOSSES = ("huber", "l2")

# How a uniform u in [0, 1), one per example and gamma, becomes gamma. [G] -> [G].
GAMMA_POLICIES: dict[str, Callable[[Array], Array]] = {
    "uniform": lambda u: u,  # the paper
    "one": lambda u: jnp.ones_like(u),  # LCM
    "half": lambda u: jnp.minimum(2 * u, 1),  # half of the draws at 1, half uniform
    "paired": lambda u: u.at[0].set(1.0),  # the first gamma of each sub-path at 1, the others not
}


@dataclass(frozen=True)
class Method:
    """What is distilled, and how. The defaults are the authors' recipe."""

    num_ddim_timesteps: int = 50  # M
    w: float = 8.0  # guidance in LCM form, the usual scale minus 1
    solver_substeps: int = 1  # p
    gamma: str = "uniform"  # of GAMMA_POLICIES
    gammas_per_subpath: int = 1  # they share the teacher's and the target's evaluations
    sigma: str = "paper"  # or "linear": the noise scale inside a sub-path
    conditioning: str = "embedding"  # or "snr", "both": what tells the network where it is
    loss: str = "huber"  # or "l2"
    huber_c: float = 1e-3

    def __post_init__(self):
        names = {
            "gamma": tuple(GAMMA_POLICIES),
            "sigma": SIGMAS,
            "conditioning": CONDITIONINGS,
            "loss": LOSSES,
        }
        for option, valid in names.items():
            value = getattr(self, option)
            if value not in valid:
                raise ValueError(f"{option} = {value!r}, expected one of {', '.join(valid)}")
        for option in ("num_ddim_timesteps", "solver_substeps", "gammas_per_subpath"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} = {getattr(self, option)}, expected 1 or more")
        if self.gamma == "paired" and self.gammas_per_subpath < 2:
            raise ValueError(
                f"gammas_per_subpath = {self.gammas_per_subpath}, expected 2 or more with "
                "gamma = 'paired'"
            )
        if self.w < 0:
            raise ValueError(f"w = {self.w}, expected 0 (no guidance) or more")
        if not self.huber_c > 0:
            raise ValueError(f"huber_c = {self.huber_c}, expected a positive number")

    @property
    def gamma_count(self) -> int:
        """G, the gammas drawn for each sub-path; where all would be 1 there is one."""
        return 1 if self.gamma == "one" else self.gammas_per_subpath


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


def draw(key: Array, examples: Int[Array, " B"], shape: tuple[int, ...], method: Method) -> Draws:
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


def consistency_function(
    student: Student,
    schedule: NoiseSchedule,
    x: Float[Array, "B H W C"],
    t: Int[Array, " B"],
    context: Context,
    gamma: Float[Array, " B"],
    sigma_g: Float[Array, " B"],
    conditioning: str,
) -> Float[Array, "B H W C"]:
    """f(x, t, gamma), equation (6): the student's estimate of the clean latents.

    Args:
      student: the network.
      schedule: noise schedule and prediction type.
      x: a point of the sub-path that starts at t, with signal scale alpha_t.
      t: the sub-path's start.
      context: of the prompts.
      gamma: position on the sub-path.
      sigma_g: noise scale of x.
      conditioning: "embedding" tells the network s and gamma, "snr" gives it x / n_g at t_g,
        equation (5), "both" adds the gamma embedding to the latter.

    Raises:
      ValueError: another name for conditioning.
    """
    alpha, _ = schedule.at(t)
    if conditioning == "embedding":
        x0, _ = to_x0_and_eps(
            student(x, t, context, gamma), x, alpha, sigma_g, schedule.prediction_type
        )
    elif conditioning in ("snr", "both"):
        n = jnp.sqrt(alpha**2 + sigma_g**2)
        x_net = x / per_example(n, x)
        told_gamma = gamma if conditioning == "both" else jnp.ones_like(gamma)
        output = student(x_net, schedule.timestep_of(sigma_g / alpha), context, told_gamma)
        x0, _ = to_x0_and_eps(output, x_net, alpha / n, sigma_g / n, schedule.prediction_type)
    else:
        raise ValueError(f"conditioning: {conditioning!r} is none of 'embedding', 'snr', 'both'")
    c_skip, c_out = boundary_scalings(t, x.dtype)
    return per_example(c_skip, x) * x + per_example(c_out, x) * x0


def distance(
    a: Float[Array, "B H W C"],
    b: Float[Array, "B H W C"],
    kind: str = "huber",
    huber_c: float = 1e-3,
) -> Float[Array, " B"]:
    """Mean over H, W, C of (a - b)^2 ("l2") or of the pseudo-Huber sqrt((a - b)^2 + c^2) - c
    ("huber").

    Raises:
      ValueError: the shapes differ, or another kind.
    """
    if a.shape != b.shape:
        raise ValueError(f"distance: shapes {a.shape} and {b.shape} differ")
    squared = (a - b) ** 2
    if kind == "huber":
        squared = jnp.sqrt(squared + huber_c**2) - huber_c
    elif kind != "l2":
        raise ValueError(f"loss: {kind!r} is neither 'huber' nor 'l2'")
    return squared.mean(axis=tuple(range(1, a.ndim)))


def slam_loss(
    student: Student,
    target: Student,
    teacher: Denoiser,
    schedule: NoiseSchedule,
    latents: Float[Array, "B H W C"],
    context: Context,
    null_context: Context | None,
    draws: Draws,
    method: Method,
) -> Float[Array, "B G"]:
    """The loss of every example and gamma, equations (1) to (7); unreduced.

    Args:
      student: network being trained.
      target: the same network with the EMA weights.
      teacher: the frozen teacher.
      schedule: the teacher's noise schedule.
      latents: clean latents x_0.
      context, null_context: of the prompts and of the empty one (None where w is 0).
      draws: sub-path, gamma and noise of each example.
      method: the named choices.
    """
    grid = jnp.asarray(distillation_grid(schedule.num_train_timesteps, method.num_ddim_timesteps))
    s = grid[draws.index]
    e = jnp.maximum(s - schedule.num_train_timesteps // method.num_ddim_timesteps, 0)
    scales_s, scales_e = schedule.at(s), schedule.at(e)
    x_s = add_noise(latents, draws.eps, *scales_s)
    x_e = ddim_solve(
        teacher, schedule, x_s, s, e, context, null_context, method.w, method.solver_substeps
    )

    at_end = jnp.ones_like(draws.gamma[:, 0])
    f_target = consistency_function(
        target, schedule, x_e, e, context, at_end, scales_e[1], method.conditioning
    )
    f_target, x_e = jax.lax.stop_gradient((f_target, x_e))

    # Several gammas share the teacher's and the target's work: every example becomes G
    # neighbouring rows.
    count = draws.gamma.shape[1]
    x_s, x_e, f_target, context, s, scales_s, scales_e = jax.tree.map(
        lambda a: jnp.repeat(a, count, axis=0), (x_s, x_e, f_target, context, s, scales_s, scales_e)
    )
    gamma = draws.gamma.reshape(-1)
    x_g, sigma_g = interpolate(x_s, x_e, scales_s, scales_e, gamma, method.sigma)
    f_student = consistency_function(
        student, schedule, x_g, s, context, gamma, sigma_g, method.conditioning
    )
    return distance(f_student, f_target, method.loss, method.huber_c).reshape(-1, count)
