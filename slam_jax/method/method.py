"""What a method of distillation is: the interface that training, drawing and export know.

A method is a frozen dataclass whose fields are its options (`config.method`). It says what is
random in a step, what the loss is, what the student has beside its teacher, and how it is sampled.
`registry` lists those there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slam_jax.base.options import Options, option
from slam_jax.method.consistency import Student
from slam_jax.method.schedule import Schedule
from slam_jax.method.solver import Context, Denoiser

Params = dict[str, Any]
# Metrics as (total, count), of which the mean is wanted: those of parts of a batch can be added.
Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


class Networks(NamedTuple):
    """The functions that a loss is made of.

    Attributes:
      student: weights -> the student, whose backward pass may compute things again.
      target: weights -> the same network, for passes without a gradient.
      teacher: the frozen teacher, its weights bound.
      schedule: the teacher's noise schedule.
    """

    student: Callable[[Params], Student]
    target: Callable[[Params], Student]
    teacher: Denoiser
    schedule: Schedule


class Examples(NamedTuple):
    """Examples of a batch, as the networks take them.

    Attributes:
      latents: clean latents x_0, [B, H, W, C].
      context: of the prompts.
      null_context: of the empty prompt; None where w is 0.
      index: global index of each example, [B]: random draws depend on it.
    """

    latents: Float[Array, "B H W C"]
    context: Context
    null_context: Context | None
    index: Int[Array, " B"]


class RowKeys(NamedTuple):
    """Random numbers of a sampler: row i depends on (key, index[i]) only.

    Attributes:
      key: of all rows.
      index: which picture each row is, [B].
    """

    key: Array
    index: Int[Array, " B"]


@dataclass(frozen=True)
class Method(Options, ABC):
    """A way to distil a teacher into a student that draws in few steps.

    Attributes:
      title: what it is, and where that is written, for model cards.
    """

    title: ClassVar[str] = ""
    name: str = option("", "name of the method")
    w: float = option(
        8.0, "guidance that the student learns, the usual scale minus 1", at_least=0, at_most=1000
    )

    @property
    def tells_gamma(self) -> bool:
        """Whether the student's network gets an input that its teacher lacks: gamma."""
        return False

    @property
    def usual_steps(self) -> int:
        """In how many steps a model card tells users to draw."""
        return 4

    @abstractmethod
    def check(self, schedule: Schedule) -> None:
        """Compares the options with the teacher's schedule.

        Raises:
          OptionError: they do not fit.
        """

    def init(self, student: Params) -> Params:
        """All trained weights before the first step, from the student's own, which are its
        teacher's; a method that trains other networks beside it returns a dict of them."""
        return student

    def student_of(self, params: Params) -> Params:
        """The student's weights among those that `init` returned."""
        return params

    def optimizer(self, tx: Any) -> Any:
        """The optimiser of what `init` returned, from the one for the student; a method with other
        networks returns an `optax.partition` over them."""
        return tx

    @abstractmethod
    def loss(
        self, params: Params, ema: Params, networks: Networks, examples: Examples, key: Array
    ) -> tuple[Float[Array, " B"], Sums]:
        """The loss of each example, and metrics.

        Args:
          params: the trained weights, to which the gradient is taken.
          ema: their exponential moving average.
          networks: the functions that take them.
          examples: the batch.
          key: of the step's random draws.
        """

    def drawn(
        self, key: Array, index: Int[Array, " B"], shape: tuple[int, ...], schedule: Schedule
    ) -> dict[str, Array]:
        """What the loss draws for examples with these global indices, for a user who looks at a
        step again: name -> numbers [B, ...].

        Args:
          key: of the step.
          index: of the examples.
          shape: of one latent.
          schedule: the teacher's.
        """
        del key, index, shape, schedule
        return {}

    @abstractmethod
    def timesteps(
        self, steps: int, schedule: Schedule, strength: float = 1.0
    ) -> Int[np.ndarray, " n"]:
        """Descending times of a sampler with so many steps.

        Args:
          steps: network evaluations.
          schedule: the teacher's.
          strength: how much of a picture is drawn anew, in (0, 1]; 1 starts from noise.

        Raises:
          ValueError: impossible numbers.
        """

    @abstractmethod
    def sample(
        self,
        student: Student,
        schedule: Schedule,
        x: Float[Array, "B H W C"],
        context: Context,
        timesteps: Int[Array | np.ndarray, " n"],
        rows: RowKeys,
    ) -> Float[Array, "B H W C"]:
        """Clean latents.

        Args:
          student: the network, its weights bound.
          schedule: the teacher's.
          x: noise, or a noised picture, at timesteps[0].
          context: of the prompts.
          timesteps: of the method above.
          rows: random numbers of the steps.
        """

    def diffusers_scheduler(self, schedule: Schedule) -> dict[str, Any]:
        """The scheduler with which the pipelines of diffusers draw as `sample` does, see
        `Schedule.diffusers_scheduler`. By default DDIM, as `sampler.sample_ddim` has it."""
        return schedule.diffusers_scheduler("ddim", 0)


def sums_by_bin(values: Float[Array, " B"], bins: Int[Array, " B"], count: int, name: str) -> Sums:
    """Values in each of `count` bins, for metrics name0 ..; the mean of an empty bin is NaN."""
    totals = jnp.zeros(count).at[bins].add(values)
    sizes = jnp.zeros(count).at[bins].add(1.0)
    return {f"{name}{i}": (totals[i], sizes[i]) for i in range(count)}


def gaussian(
    key: Array, examples: Int[Array, " B"], shape: tuple[int, ...]
) -> Float[Array, "B ..."]:
    """Standard normal noise, [B, *shape]; row i depends on (key, examples[i]) only."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(examples)
