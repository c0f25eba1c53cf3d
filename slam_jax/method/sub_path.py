"""What methods share that learn from sub-paths, pieces of the teacher's trajectory between points
of a grid.

    (1)  x_s = alpha_s x_0 + sigma_s eps,  s = t_j                         start of the sub-path
    (2)  x_e = DDIM(teacher, x_s, s -> e)                                 its end, see `solver`

The grid t_0 .. t_{M-1} is the schedule's; e is the point before s on it, or 0.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from slam_jax.base.options import check, option
from slam_jax.method.consistency import DISTANCES, distance
from slam_jax.method.method import Examples, Method, RowKeys, Sums, sums_by_bin
from slam_jax.method.sampler import consistency_timesteps, sample_consistency
from slam_jax.method.schedule import Schedule, add_noise
from slam_jax.method.solver import Denoiser, ddim_solve, guided

BINS = 4  # of time, for metrics


class Starts(NamedTuple):
    """Where sub-paths start: the random part of one batch.

    Attributes:
      index: j, which sub-path, [B], 0 .. M-1.
      eps: noise, [B, H, W, C].
      w: the teacher's guidance, [B]; a number where it is the same for all.
    """

    index: Int[Array, " B"]
    eps: Float[Array, "B H W C"]
    w: Float[Array, " B"] | float


class SubPaths(NamedTuple):
    """A sub-path of each example; no gradient goes through its points.

    Attributes:
      s, e: where it starts and ends, s >= e, [B].
      x_s, x_e: its points there, [B, H, W, C].
    """

    s: Num[Array, " B"]
    e: Num[Array, " B"]
    x_s: Float[Array, "B H W C"]
    x_e: Float[Array, "B H W C"]


@dataclass(frozen=True)
class SubPathMethod(Method):
    """A method that learns from sub-paths, and draws by consistency sampling on their grid."""

    w_spread: float = option(
        0.0,
        "the teacher's guidance is drawn for each example, uniformly from w - w_spread to w + "
        "w_spread; w_min = 3 and w_max = 15 of diffusers' LCM scripts are w = 9, w_spread = 6",
        at_least=0,
        at_most=1000,
    )
    num_ddim_timesteps: int = option(50, "M, the number of sub-paths", at_least=1, at_most=100_000)
    solver_substeps: int = option(
        1, "p, teacher evaluations along a sub-path", at_least=1, at_most=1000
    )
    distance: str = option(
        "huber", "distance between the answers of student and target", one_of=DISTANCES
    )
    huber_c: float = option(1e-3, "c of the pseudo-Huber distance", above=0, at_most=1e6)

    def __post_init__(self):
        super().__post_init__()
        check(self.w_spread <= self.w, "w_spread", self.w_spread, f"at most w = {self.w}")

    def check(self, schedule: Schedule) -> None:
        schedule.grid(self.num_ddim_timesteps)

    def drawn(self, key, index, shape, schedule: Schedule) -> dict[str, Array]:
        starts, _ = draw_starts(key, index, shape, self)
        grid = schedule.grid(self.num_ddim_timesteps)
        guidance = {"w": starts.w} if isinstance(starts.w, Array) else {}
        return {"t": jnp.asarray(grid)[starts.index], **guidance}

    def timesteps(self, steps: int, schedule: Schedule, strength: float = 1.0) -> np.ndarray:
        return consistency_timesteps(steps, schedule.grid(self.num_ddim_timesteps), strength)

    def sample(self, student, schedule, x, context, timesteps, rows: RowKeys):
        return sample_consistency(student, schedule, x, context, timesteps, rows)

    def diffusers_scheduler(self, schedule: Schedule) -> dict[str, Any]:
        return schedule.diffusers_scheduler("consistency", self.num_ddim_timesteps)

    def distances(
        self, answer: Float[Array, "B H W C"], target: Float[Array, "B H W C"]
    ) -> Float[Array, " B"]:
        """Between the answers of student and target, of whom only the first gets a gradient."""
        return distance(answer, jax.lax.stop_gradient(target), self.distance, self.huber_c)

    def sums_by_time(self, losses: Float[Array, " B"], index: Int[Array, " B"]) -> Sums:
        """The losses of each quarter of the grid, loss_t0 .. loss_t3."""
        return sums_by_bin(losses, index * BINS // self.num_ddim_timesteps, BINS, "loss_t")


def draw_starts(
    key: Array, examples: Int[Array, " B"], shape: tuple[int, ...], method: SubPathMethod
) -> tuple[Starts, Array]:
    """Draws for the examples with these global indices: the same in any batch, on any devices, and
    by any of these methods.

    Args:
      key: the step's key.
      examples: global example indices.
      shape: (H, W, C) of one latent.
      method: says M and w.

    Returns:
      The starts, and keys for what else a method draws of each sub-path, [B].
    """

    def one(example):
        own = jax.random.fold_in(key, example)
        index_key, other, eps_key, w_key = jax.random.split(own, 4)
        return (
            jax.random.randint(index_key, (), 0, method.num_ddim_timesteps),
            jax.random.normal(eps_key, shape),
            method.w + method.w_spread * jax.random.uniform(w_key, minval=-1.0),
            other,
        )

    index, eps, w, others = jax.vmap(one)(examples)
    return Starts(index, eps, w if method.w_spread else method.w), others


def sub_paths(
    teacher: Denoiser,
    schedule: Schedule,
    examples: Examples,
    starts: Starts,
    method: SubPathMethod,
) -> SubPaths:
    """The teacher's sub-path from each start, equations (1) and (2).

    Args:
      teacher: the frozen network.
      schedule: its noise schedule.
      examples: clean latents and their prompts.
      starts: of the sub-path of each example.
      method: says M and p.
    """
    latents, context, null_context, _ = examples
    index, eps, w = starts
    grid = schedule.grid(method.num_ddim_timesteps)
    ends = np.concatenate([0 * grid[:1], grid[:-1]])
    s, e = jnp.asarray(grid)[index], jnp.asarray(ends)[index]
    x_s = add_noise(latents, eps, *schedule.at(s))
    predict = guided(teacher, schedule, context, null_context, w)
    x_e = ddim_solve(predict, schedule, x_s, s, e, method.solver_substeps)
    return SubPaths(s, e, x_s, jax.lax.stop_gradient(x_e))
