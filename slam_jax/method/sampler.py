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
from jaxtyping import Array, Float, Int

from slam_jax.method.consistency import Student, consistency_on_path
from slam_jax.method.method import RowKeys, gaussian
from slam_jax.method.schedule import Schedule, add_noise, distillation_grid
from slam_jax.method.solver import Context, Predictor


def consistency_timesteps(
    steps: int,
    num_ddim_timesteps: int = 50,
    num_train_timesteps: int = 1000,
    strength: float = 1.0,
    custom: list[int] | None = None,
) -> np.ndarray:
    """Descending timesteps, equation (1); diffusers' LCMScheduler has the same for every n.

    Args:
      steps: n, ignored when `custom` gives the timesteps.
      num_ddim_timesteps: M of the distillation.
      num_train_timesteps: N of the teacher.
      strength: image-to-image: the share of the grid (or of `custom`) that is used, in (0, 1];
        1 starts from pure noise.
      custom: timesteps to use instead of the grid's, strictly descending integers.

    Raises:
      ValueError: more steps than the grid has points, or impossible values.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength: {strength} must be in (0, 1]")
    if custom is not None:
        timesteps = np.asarray(custom)
        integers = timesteps.ndim == 1 and len(timesteps) and timesteps.dtype.kind == "i"
        if not integers or np.any(np.diff(timesteps) >= 0):
            raise ValueError(f"timesteps: {custom} must be a list of strictly descending integers")
        if timesteps[0] >= num_train_timesteps or timesteps[-1] < 0:
            raise ValueError(
                f"timesteps: {custom} must lie between 0 and {num_train_timesteps - 1}"
            )
        used = int(len(timesteps) * strength)
        if used < 1:
            raise ValueError(f"strength: {strength} leaves none of the {len(timesteps)} timesteps")
        return timesteps[len(timesteps) - used :]
    grid = distillation_grid(num_train_timesteps, num_ddim_timesteps)[
        : int(num_ddim_timesteps * strength)
    ][::-1]
    if not 1 <= steps <= len(grid):
        raise ValueError(
            f"steps: {steps} must be between 1 and {len(grid)}, the number of grid points at "
            f"strength {strength:g}"
        )
    return grid[np.floor(np.linspace(0, len(grid), steps, endpoint=False)).astype(np.int64)]


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


def sample_consistency(
    student: Student,
    schedule: Schedule,
    x: Float[Array, "B H W C"],
    context: Context,
    timesteps: Int[Array | np.ndarray, " n"],
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
    timesteps: Int[Array | np.ndarray, " n"],
    end: int | None = None,
) -> Float[Array, "B H W C"]:
    """Draws latents by deterministic DDIM.

    Args:
      predict: the guided teacher, see `solver.guided`, or a student.
      schedule: its noise schedule.
      x: noise at timesteps[0].
      timesteps: descending, see `ddim_timesteps`.
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
    schedule: Schedule, timesteps: Int[Array | np.ndarray, " n"], end: int | None = None
) -> tuple[Array, Array]:
    """alpha and sigma that each step goes to; the last one goes to the time `end`, or for None to
    the clean latents, (1, 0)."""
    if end is not None:
        return schedule.at(jnp.append(jnp.asarray(timesteps[1:]), end))
    alphas, sigmas = schedule.at(jnp.asarray(timesteps[1:]))
    one = jnp.ones(1, alphas.dtype)
    return jnp.concatenate([alphas, one]), jnp.concatenate([sigmas, 0 * one])
