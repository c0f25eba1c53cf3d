"""What a metric of drawn pictures is; `registry` lists them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from slam_jax.data.reference import Reference
from slam_jax.features.rows import Rows

MOST_VALUES = 1024  # of a small picture: covariances of its pixels are fitted

Whose = Literal["model", "teacher", "reference", "prompts"]


@dataclass(frozen=True)
class Drawn:
    """Pictures by one model in one number of steps.

    Attributes:
      images: in [-1, 1], [N, H, W, C]; None where there are too many to hold.
      prompts: what they were drawn for, [N].
      teacher: the teacher's pictures of the same prompts and noise in its largest number of steps;
        None where there are none to hold.
      reference: real pictures with labels; None where there are none, as during training.
      features: (whose, network) -> features of pictures, of any number; those of the prompts are
        one row for each picture of the model.
    """

    images: Float[np.ndarray, "N H W C"] | None
    prompts: tuple[str, ...]
    teacher: Float[np.ndarray, "N H W C"] | None = None
    reference: Reference | None = None
    features: Mapping[tuple[Whose, str], Rows] = field(default_factory=dict)


class Metric(ABC):
    """A number for a set of pictures.

    Attributes:
      name: its key in reports and metrics; NAME_4 is that of 4 steps, which keep-best can go by.
      title: the head of its column.
      lower_is_better: else best checkpoints cannot be kept by it.
      compares_with: "reference": real pictures, which there are none of in training; "teacher": its
        pictures of the same noise; None: nothing.
      networks: whose features it reads, names in `features.registry`; a metric that has any is
        computed where it is asked for by name.
      reads_prompts: whether it reads features of the prompts, too.
      needs_rows: whether the features' mean and covariance are not enough.
      of_a_prompt: how many pictures of each prompt it takes.
      too_few: why it takes as many pictures as `fewest` says, and what to do.
    """

    name: str
    title: str
    lower_is_better: bool = True
    compares_with: Literal["teacher", "reference"] | None = None
    networks: tuple[str, ...] = ()
    reads_prompts: bool = False
    needs_rows: bool = False
    of_a_prompt: int = 1
    too_few: str = "draw more"

    def applies(self, drawn: Drawn) -> bool:
        """Whether it can be computed for these pictures; what it compares with is there."""
        del drawn
        return True

    @abstractmethod
    def compute(self, drawn: Drawn) -> float:
        """The number."""

    def fewest(self, widths: Mapping[str, int]) -> int:
        """How many pictures, drawn and real, it takes at least.

        Args:
          widths: features of a picture, by network.
        """
        del widths
        return 1

    def interval(self, drawn: Drawn) -> tuple[float, float] | None:
        """Where the number would lie in 95 of 100 repetitions with other pictures; None: not
        told."""
        del drawn
        return None

    def choices(self, drawn: Drawn) -> int | None:
        """How many answers there are, of a share of right ones that means nothing without; None:
        it is no such share."""
        del drawn
        return None


def flat(images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N D"]:
    """Pictures as rows."""
    return images.reshape(len(images), -1)


def is_small(images: np.ndarray | None) -> bool:
    """Whether there are more than two pictures, and so small that their pixels are features."""
    return images is not None and images[0].size <= MOST_VALUES and len(images) > 2
