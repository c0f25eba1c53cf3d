"""What the sources of images with captions have in common."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from slam_jax.data.rejects import Rejected, Rejects


@dataclass(frozen=True)
class Example:
    """An image with its captions.

    Attributes:
      name: tells where it is from, such as "00003.tar/000123".
      image: contents of an image file, or the picture itself.
      captions: one or more.
    """

    name: str
    image: bytes | UInt8[np.ndarray, "H W 3"]
    captions: tuple[str, ...]


class Examples(Protocol):
    """Examples that can be read in any order, from any thread; can be pickled.

    Attributes:
      name: what the user called the source, for messages.
      rejects: those that were passed over when it was opened; they are not among the others.
      identity: changes when there are other examples or when they are in another order.
    """

    name: str
    rejects: Rejects
    identity: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Reads one.

        Raises:
          Rejected: it cannot be used.
        """
        ...


@dataclass(frozen=True)
class Filters:
    """Which examples are wanted.

    Attributes:
      min_size: pixels of the shorter side, at least.
      max_watermark: the largest probability of a watermark ("pwatermark" in LAION's metadata);
        below 1, an example that does not say its own is not wanted.
    """

    min_size: int = 0
    max_watermark: float = 1.0

    def unwanted(
        self, shapes: Int[np.ndarray, "N 2"], watermarks: Float[np.ndarray, " N"]
    ) -> dict[str, Bool[np.ndarray, " N"]]:
        """Reason -> which examples are not wanted for it; each has one reason at most.

        Args:
          shapes: heights and widths of images, in pixels.
          watermarks: their probabilities; NaN: not known.
        """
        small = shapes.min(axis=1) < self.min_size
        reasons = {f"smaller than min_size = {self.min_size}": small}
        if self.max_watermark < 1:
            unknown, marked = np.isnan(watermarks), watermarks > self.max_watermark
            reasons["pwatermark not known"] = ~small & unknown
            reasons[f"pwatermark above {self.max_watermark:g}"] = ~small & marked
        return reasons

    def check(self, name: str, shape: tuple[int, int], watermark: float = math.nan) -> None:
        """Lets an example pass.

        Args:
          name: the example's.
          shape: height and width of the image, in pixels.
          watermark: its probability; NaN: not known.

        Raises:
          Rejected: it is not wanted.
        """
        for reason, unwanted in self.unwanted(np.array([shape]), np.array([watermark])).items():
            if unwanted[0]:
                raise Rejected(reason, name, asked_for=True)
