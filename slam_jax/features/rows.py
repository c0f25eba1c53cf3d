"""Features of many pictures by one network, which are read a block at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from slam_jax.base.errors import InputError
from slam_jax.features.moments import Moments, moments_of


@dataclass(frozen=True)
class Rows:
    """Features of N pictures, or of N texts.

    Attributes:
      read: begins to read all of them from the start: blocks [n, D].
    """

    read: Callable[[], Iterable[Float[np.ndarray, "n D"]]]

    def __iter__(self) -> Iterator[Float[np.ndarray, "n D"]]:
        yield from self.read()

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance."""
        return moments_of(self)

    def groups(self, count: int) -> Iterator[Float[np.ndarray, "n D"]]:
        """The rows in so many groups of neighbours, all of a size but for one row."""
        bounds = np.linspace(0, self.moments.count, count + 1).astype(int)[1:]
        held, seen, number = [], 0, 0
        for block in self:
            while len(block):
                taken = block[: bounds[number] - seen]
                held.append(taken)
                seen, block = seen + len(taken), block[len(taken) :]
                if seen == bounds[number]:
                    yield np.concatenate(held)
                    held, number = [], number + 1

    def array(self) -> Float[np.ndarray, "N D"]:
        """All of them at once."""
        return np.concatenate(list(self))


@dataclass(frozen=True)
class Summary(Rows):
    """Features of which mean and covariance alone are known.

    Attributes:
      known: these.
    """

    known: Moments

    @classmethod
    def of(cls, known: Moments, name: str) -> "Summary":
        """With a refusal for whoever asks for the rows; `name` is what lacks them."""

        def read():
            raise InputError(
                f"{name}: holds mean and covariance only, and this metric compares picture by "
                "picture; make it again with slam-jax reference --metrics"
            )

        return cls(read, known)

    @property
    def moments(self) -> Moments:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.known


def in_memory(array: Float[np.ndarray, "N D"]) -> Rows:
    """Rows that are there already."""
    return Rows(lambda: [array])
