"""What a metric of drawn pictures is; `registry` lists them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from slam_jax.data.reference import Reference

MOST_VALUES = 1024  # of a small picture: covariances of its pixels are fitted


@dataclass(frozen=True)
class Drawn:
    """Pictures by one model in one number of steps.

    Attributes:
      images: in [-1, 1], [N, H, W, C].
      prompts: what they were drawn for, [N].
      teacher: the teacher's pictures of the same prompts and noise in its largest number of steps.
      reference: real pictures; None where there are none, as during training.
    """

    images: Float[np.ndarray, "N H W C"]
    prompts: tuple[str, ...]
    teacher: Float[np.ndarray, "N H W C"]
    reference: Reference | None = None


class Metric(ABC):
    """A number for a set of pictures.

    Attributes:
      name: its key in reports and metrics; NAME_4 is that of 4 steps, which keep-best can go by.
      title: the head of its column.
      lower_is_better: else best checkpoints cannot be kept by it.
      needs_reference: whether it compares with real pictures, which there are none of in training.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    lower_is_better: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False

    def applies(self, drawn: Drawn) -> bool:
        """Whether it can be computed for these pictures; real ones are there if it needs them."""
        del drawn
        return True

    @abstractmethod
    def compute(self, drawn: Drawn) -> float:
        """The number."""


def flat(images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N D"]:
    """Pictures as rows."""
    return images.reshape(len(images), -1)
