"""The consistency function: a student's answer, the clean latents, from any point of a sub-path.

(1)  f(x_g, s, gamma) = c_skip(s) x_g + c_out(s) x0(x_g, network output; alpha_g, sigma_g)
(2)  sigma(t_g) / alpha(t_g) = sigma_g / alpha_g,  n_g = sqrt(alpha_g^2 + sigma_g^2)
     SNR-matched conditioning: the network sees x_g / n_g at the real-valued time t_g
     (n_g = alpha_g + sigma_g in flow matching)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from slam_jax.method.schedule import Schedule, per_example
from slam_jax.method.solver import Context

# (x [B, H, W, C], t [B], context, gamma [B]) -> output [B, H, W, C]
Student = Callable[[Array, Array, Context, Array], Array]

CONDITIONINGS = ("embedding", "snr", "both")
DISTANCES = ("huber", "l2")


class Point(NamedTuple):
    """A point of each sub-path.

    Attributes:
      x: x_g, [B, H, W, C].
      s: where the sub-path starts, [B].
      gamma: position on it, 1 is its start, [B].
      alpha, sigma: alpha_g and sigma_g, the scales of signal and noise in x, [B].
    """

    x: Float[Array, "B H W C"]
    s: Num[Array, " B"]
    gamma: Float[Array, " B"]
    alpha: Float[Array, " B"]
    sigma: Float[Array, " B"]


def consistency_function(
    student: Student, schedule: Schedule, point: Point, context: Context, conditioning: str
) -> Float[Array, "B H W C"]:
    """f(x_g, s, gamma), equation (1).

    Args:
      student: the network.
      schedule: noise schedule and prediction type.
      point: where f is asked for.
      context: of the prompts.
      conditioning: "embedding" tells the network s and gamma, "snr" gives it x / n_g at t_g,
        equation (2), "both" adds the gamma embedding to the latter.

    Raises:
      ValueError: another name for conditioning.
    """
    x, s, gamma, alpha, sigma = point
    if conditioning == "embedding":
        x0, _ = schedule.to_x0_and_eps(student(x, s, context, gamma), x, alpha, sigma)
    elif conditioning in ("snr", "both"):
        n = schedule.norm(alpha, sigma)
        x_net = x / per_example(n, x)
        told_gamma = gamma if conditioning == "both" else jnp.ones_like(gamma)
        output = student(x_net, schedule.time_of(alpha, sigma), context, told_gamma)
        x0, _ = schedule.to_x0_and_eps(output, x_net, alpha / n, sigma / n)
    else:
        raise ValueError(f"conditioning: {conditioning!r} is none of 'embedding', 'snr', 'both'")
    c_skip, c_out = schedule.boundary_scalings(s, x.dtype)
    return per_example(c_skip, x) * x + per_example(c_out, x) * x0


def consistency_on_path(
    student: Student,
    schedule: Schedule,
    x: Float[Array, "B H W C"],
    t: Num[Array, " B"],
    context: Context,
) -> Float[Array, "B H W C"]:
    """f(x, t, 1): from a point x of the trajectory itself, at time t.

    There "embedding" and "snr" are the same function: n = 1 and t_g = t.
    """
    ones = jnp.ones(x.shape[0], x.dtype)
    point = Point(x, t, ones, *schedule.at(t))
    return consistency_function(student, schedule, point, context, "embedding")


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
        raise ValueError(f"distance: {kind!r} is neither 'huber' nor 'l2'")
    return squared.mean(axis=tuple(range(1, a.ndim)))
