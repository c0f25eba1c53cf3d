"""Phased consistency distillation (PCM, arXiv 2405.18407), without its adversarial loss.

    (1)  s_0 = N - 1 > s_1 > .. > s_{K-1},  s_i = t_{M - floor(i M / K) - 1},  s_K = 0
         phase i has the times t with s_i >= t > s_{i+1};  s_{i+1} is its edge
    (2)  F(x, t, u) = alpha_u x0 + sigma_u eps,   (x0, eps): the network's answer for x at time t
    (3)  loss = d(F(x_s, s, u), F-(x_e, e, u)),   u: the edge of the phase of s

x_s and x_e are the ends of a sub-path, see `sub_path`; F- has the EMA weights and no gradient. F is
a DDIM step of any length. F(x, u, u) = x whatever the network says: where a sub-path ends on the
edge its target is x_e itself, the boundary condition. The sampler steps from s_i to s_{i+1} by (2),
without noise.

The authors' edges are t_{floor(i M / K) - 1}, which is (1) where K divides M. Where it does not, as
for K = 4 and M = 50, no sampler of theirs starts a step where a phase starts (their issue 14); (1)
has the edges where diffusers' TCDScheduler, and ours, takes K steps. The authors draw w from an
interval, which the student is not told (`w_spread`), and train a LoRA (`config.student.kind`).
Their optional second loss, a discriminator on noised latents, is not here.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from slam_jax.base.options import check, option
from slam_jax.method.consistency import Student
from slam_jax.method.method import Examples, Networks, Params, Sums
from slam_jax.method.sampler import consistency_timesteps, sample_ddim
from slam_jax.method.schedule import Schedule, add_noise
from slam_jax.method.solver import Context, Predictor
from slam_jax.method.sub_path import SubPathMethod, draw_starts, sub_paths


@dataclass(frozen=True)
class Pcm(SubPathMethod):
    """Phased consistency distillation: the student leaps to the edge of the phase that it is in."""

    title: ClassVar[str] = "PCM (phased consistency, arXiv 2405.18407)"
    name: str = option("pcm", "name of the method", one_of=("pcm",))
    phases: int = option(
        4, "K, phases of the trajectory: the number of steps to draw in", at_least=1, at_most=1000
    )

    def __post_init__(self):
        super().__post_init__()
        most = self.num_ddim_timesteps
        check(self.phases <= most, "phases", self.phases, f"at most num_ddim_timesteps = {most}")

    @property
    def usual_steps(self) -> int:
        return self.phases

    def loss(
        self, params: Params, ema: Params, networks: Networks, examples: Examples, key: Array
    ) -> tuple[Float[Array, " B"], Sums]:
        schedule, context = networks.schedule, examples.context
        student = predictor(networks.student(params), schedule, context)
        target = predictor(networks.target(ema), schedule, context)
        shape = examples.latents.shape[1:]
        starts, _ = draw_starts(key, examples.index, shape, self)
        paths = sub_paths(networks.teacher, schedule, examples, starts, self)
        edges = phase_edges(self.phases, schedule.grid(self.num_ddim_timesteps))
        edge = jnp.asarray(edges)[starts.index]
        answer = add_noise(*student(paths.x_s, paths.s), *schedule.at(edge))
        wanted = add_noise(*target(paths.x_e, paths.e), *schedule.at(edge))
        losses = self.distances(answer, wanted)
        return losses, self.sums_by_time(losses, starts.index)

    def sample(self, student: Student, schedule: Schedule, x, context, timesteps, rows):
        del rows  # nothing is random
        return sample_ddim(predictor(student, schedule, context), schedule, x, timesteps, end=0)

    def diffusers_scheduler(self, schedule: Schedule) -> dict[str, Any]:
        return schedule.diffusers_scheduler("phases", self.num_ddim_timesteps)


def phase_edges(phases: int, grid: Num[np.ndarray, " M"]) -> Num[np.ndarray, " M"]:
    """The edge of the phase of each grid point, ascending, equation (1).

    Args:
      phases: K.
      grid: t_0 .. t_{M-1}.
    """
    starts = consistency_timesteps(phases, grid)
    edges = np.append(starts[1:], 0 * starts[:1])
    return edges[np.searchsorted(-starts, -grid, side="right") - 1]


def predictor(student: Student, schedule: Schedule, context: Context) -> Predictor:
    """(x, t) -> (x0, eps) of a student that is not told gamma."""

    def predict(x: Float[Array, "B H W C"], t: Num[Array, " B"]):
        output = student(x, t, context, jnp.ones(len(x), x.dtype))
        return schedule.to_x0_and_eps(output, x, *schedule.at(t))

    return predict
