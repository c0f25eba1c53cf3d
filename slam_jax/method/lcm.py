"""Latent consistency distillation (LCM, arXiv 2310.04378) with a fixed guidance.

    loss = d(f(x_s, s), f-(x_e, e)),   x_s and x_e: the ends of a sub-path, see `sub_path`

f is the consistency function with gamma = 1, see `consistency`; f- has the EMA weights and no
gradient. The student is the teacher's network: it is not told the guidance, which is one number w
or, as in diffusers' LCM-LoRA script, drawn for each example (`w_spread`). It is SLAM at gamma = 1,
with the same draws.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from slam_jax.base.options import option
from slam_jax.method.consistency import consistency_on_path
from slam_jax.method.method import Examples, Networks, Params, Sums
from slam_jax.method.sub_path import SubPathMethod, draw_starts, sub_paths


@dataclass(frozen=True)
class Lcm(SubPathMethod):
    """Latent consistency distillation."""

    title: ClassVar[str] = "LCM (latent consistency distillation, arXiv 2310.04378)"
    name: str = option("lcm", "name of the method", one_of=("lcm",))

    def loss(
        self, params: Params, ema: Params, networks: Networks, examples: Examples, key: Array
    ) -> tuple[Float[Array, " B"], Sums]:
        schedule, context = networks.schedule, examples.context
        student, target = networks.student(params), networks.target(ema)
        shape = examples.latents.shape[1:]
        starts, _ = draw_starts(key, examples.index, shape, self)
        paths = sub_paths(networks.teacher, schedule, examples, starts, self)
        answer = consistency_on_path(student, schedule, paths.x_s, paths.s, context)
        wanted = consistency_on_path(target, schedule, paths.x_e, paths.e, context)
        losses = self.distances(answer, wanted)
        return losses, self.sums_by_time(losses, starts.index)
