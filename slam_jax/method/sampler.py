"""Sampling: few steps with the student (LCM multistep consistency), many with the teacher (DDIM).

    (1)  timesteps: the descending grid t_{M-1} .. t_0 at floor(linspace(0, M, n, endpoint=False))
    (2)  d = f(x, t, 1);   not last:  x = alpha_{t'} d + sigma_{t'} z,  z ~ N(0, I);   last:  the
    result is d

Both samplers are one `lax.scan` over the steps: one copy of the network, compiled once per (steps,
batch).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from slam_jax.method.consistency import Student, consistency_on_path
from slam_jax.method.method import RowKeys, gaussian
from slam_jax.method.schedule import Schedule, add_noise
from slam_jax.method.solver import Context, Predictor


def consistency_timesteps(
    steps: int, grid: Num[np.ndarray, " M"], strength: float = 1.0
) -> Num[np.ndarray, " n"]:
    """Descending times, equation (1); diffusers' LCMScheduler has the same for every n.

    Args:
      steps: n.
      grid: of the distillation, ascending.
      strength: image-to-image: the share of the grid that is used, in (0, 1]; 1 starts from pure
        noise.

    Raises:
      ValueError: more steps than the grid has points, or impossible values.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength: {strength} must be in (0, 1]")
    used = grid[: int(len(grid) * strength)][::-1]
    if not 1 <= steps <= len(used):
        raise ValueError(
            f"steps: {steps} must be between 1 and {len(used)}, the number of grid points at "
            f"strength {strength:g}"
        )
    return used[np.floor(np.linspace(0, len(used), steps, endpoint=False)).astype(np.int64)]


def sample_consistency(
    student: Student,
    schedule: Schedule,
    x: Float[Array, "B H W C"],
    context: Context,
    timesteps: Num[Array | np.ndarray, " n"],
    rows: RowKeys,
) -> Float[Array, "B H W C"]:
    """Draws latents with the student at gamma = 1, equation (2).

    Args:
      student: the network.
      schedule: the teacher's noise schedule.
      x: noise, or for image-to-image the noised image, at timesteps[0].
      context: of the prompts.
      timesteps: descending, see `consistency_timesteps`.
      rows: of the noise between the steps: an equal (key, index) is the same picture in any batch.

    Returns:
      Clean latents.
    """
    batch = x.shape[0]
    ones = jnp.ones(batch, x.dtype)

    def step(x, inputs):
        t, alpha_next, sigma_next, step_key = inputs
        d = consistency_on_path(student, schedule, x, jnp.full(batch, t), context)
        z = gaussian(step_key, rows.index, x.shape[1:])
        return add_noise(d, z, alpha_next * ones, sigma_next * ones), None

    alphas_next, sigmas_next = _scales_after(schedule, timesteps)
    keys = jax.random.split(rows.key, len(timesteps))
    return jax.lax.scan(step, x, (jnp.asarray(timesteps), alphas_next, sigmas_next, keys))[0]


def sample_ddim(
    predict: Predictor,
    schedule: Schedule,
    x: Float[Array, "B H W C"],
    timesteps: Num[Array | np.ndarray, " n"],
    end: int | None = None,
) -> Float[Array, "B H W C"]:
    """Draws latents by deterministic DDIM.

    Args:
      predict: the guided teacher, see `solver.guided`, or a student.
      schedule: its noise schedule.
      x: noise at timesteps[0].
      timesteps: descending, see `Schedule.teacher_timesteps`.
      end: the time that the last step goes to; None: to the clean latents, alpha = 1.

    Returns:
      Clean latents.
    """
    batch = x.shape[0]
    ones = jnp.ones(batch, x.dtype)

    def step(x, inputs):
        t, alpha_next, sigma_next = inputs
        x0, eps = predict(x, jnp.full(batch, t))
        return add_noise(x0, eps, alpha_next * ones, sigma_next * ones), None

    return jax.lax.scan(
        step, x, (jnp.asarray(timesteps), *_scales_after(schedule, timesteps, end))
    )[0]


def _scales_after(
    schedule: Schedule, timesteps: Num[Array | np.ndarray, " n"], end: int | None = None
) -> tuple[Array, Array]:
    """alpha and sigma that each step goes to; the last one goes to the time `end`, or for None to
    the clean latents, (1, 0)."""
    if end is not None:
        return schedule.at(jnp.append(jnp.asarray(timesteps[1:]), end))
    alphas, sigmas = schedule.at(jnp.asarray(timesteps[1:]))
    one = jnp.ones(1, alphas.dtype)
    return jnp.concatenate([alphas, one]), jnp.concatenate([sigmas, 0 * one])
