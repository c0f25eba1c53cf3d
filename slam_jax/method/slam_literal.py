"""SLAM as its authors published it, with nothing to choose: `slam` by its equations (1) to (5) with
one gamma a sub-path, drawn uniformly, the noise scale "paper", and the network told (s, gamma).

`slam` has the same defaults, but a recipe may set its options otherwise. By this name a comparison
says what it compares with, whatever the recipe.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from slam_jax.base.options import OptionError, option
from slam_jax.method.method import Examples, Networks, Params, Sums
from slam_jax.method.schedule import Schedule
from slam_jax.method.slam import Slam
from slam_jax.method.sub_path import SubPathMethod


@dataclass(frozen=True)
class SlamLiteral(SubPathMethod):
    """Sub-path linear approximation by the authors' own choices."""

    title: ClassVar[str] = f"{Slam.title}, as published"
    name: str = option("slam_literal", "name of the method", one_of=("slam_literal",))

    @property
    def slam(self) -> Slam:
        """The same as a choice of SLAM's options."""
        return Slam(
            w=self.w,
            w_spread=self.w_spread,
            num_ddim_timesteps=self.num_ddim_timesteps,
            solver_substeps=self.solver_substeps,
            distance=self.distance,
            huber_c=self.huber_c,
            gamma="uniform",
            gammas_per_subpath=1,
            sigma="paper",
            conditioning="embedding",
        )

    def check(self, schedule: Schedule) -> None:
        super().check(schedule)
        if not schedule.published_slam:
            raise OptionError("name", self.name, "slam, lcm or pcm for a flow-matching teacher")

    @property
    def tells_gamma(self) -> bool:
        return self.slam.tells_gamma

    def loss(
        self, params: Params, ema: Params, networks: Networks, examples: Examples, key: Array
    ) -> tuple[Float[Array, " B"], Sums]:
        return self.slam.loss(params, ema, networks, examples, key)

    def drawn(self, key, index, shape, schedule):
        return self.slam.drawn(key, index, shape, schedule)
