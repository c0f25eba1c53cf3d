"""The teacher's step along the PF-ODE: classifier-free guidance and DDIM.

    (1)  eps_w = eps_c + w (eps_c - eps_u),  x0_w likewise       (LCM form: w = usual guidance
    scale - 1)
    (2)  x_e   = alpha_e x0_w + sigma_e eps_w                     (one DDIM step from s to e)
    (3)  p sub-steps: (2) from s_i to s_{i+1},  s_i = s - floor(i (s - e) / p)    ("multiple
    estimation"); without floor where times are no integers

The network's output becomes (x0, eps) first and is guided afterwards, so that every prediction
type is guided alike.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from slam_jax.method.schedule import Schedule, add_noise, per_example

# What a network is told of the prompt: a pytree of arrays with one row per example.
Context = Any
# (x [B, H, W, C], t [B], context) -> output [B, H, W, C]: a network with its parameters bound.
Denoiser = Callable[[Array, Array, Context], Array]
# (x [B, H, W, C], t [B]) -> (x0, eps): a denoiser with its prompts bound, and guided.
Predictor = Callable[[Array, Array], tuple[Array, Array]]


def guided(
    denoise: Denoiser,
    schedule: Schedule,
    context: Context,
    null_context: Context | None,
    w: Float[Array, " B"] | float,
) -> Predictor:
    """(x, t) -> (x0_w, eps_w), equation (1), for x on the PF-ODE at time t.

    cond and uncond are one batch of 2B, the two of an example next to each other, so that a batch
    that is sharded over devices stays where it is.

    Args:
      denoise: the teacher.
      schedule: its noise schedule and prediction type.
      context: of the prompts.
      null_context: of the empty prompt; None asks for no guidance and one batch of B.
      w: guidance strength of each example, or of all; 0 is the plain conditional prediction.
    """

    def predict(x, t):
        alpha, sigma = schedule.at(t)
        if null_context is None:
            return schedule.to_x0_and_eps(denoise(x, t, context), x, alpha, sigma)
        x, t, alpha, sigma = (jnp.repeat(a, 2, axis=0) for a in (x, t, alpha, sigma))
        both_contexts = jax.tree.map(
            lambda c, u: jnp.stack([c, u], axis=1).reshape(-1, *c.shape[1:]), context, null_context
        )
        x0, eps = schedule.to_x0_and_eps(denoise(x, t, both_contexts), x, alpha, sigma)
        return guide(x0), guide(eps)

    def guide(both):
        cond, uncond = both[::2], both[1::2]
        strength = per_example(w, cond) if isinstance(w, Array) else w
        return cond + strength * (cond - uncond)

    return predict


def ddim_solve(
    predict: Predictor,
    schedule: Schedule,
    x_s: Float[Array, "B H W C"],
    s: Num[Array, " B"],
    e: Num[Array, " B"],
    substeps: int = 1,
) -> Float[Array, "B H W C"]:
    """x_e, the end of the sub-path that starts in x_s, by DDIM steps, equations (2) and (3).

    Args:
      predict: the guided teacher.
      schedule: its noise schedule.
      x_s: noisy latents at s.
      s, e: start and end timesteps, s >= e >= 0.
      substeps: p, the number of teacher evaluations.
    """

    share = jnp.floor_divide if jnp.issubdtype(s.dtype, jnp.integer) else jnp.divide

    def step(x, i):
        here, there = (s - share(n * (s - e), substeps) for n in (i, i + 1))
        x0, eps = predict(x, here)
        return add_noise(x0, eps, *schedule.at(there)), None

    if substeps == 1:
        return step(x_s, 0)[0]
    return jax.lax.scan(step, x_s, jnp.arange(substeps))[0]
