"""Examples that cannot be used are passed over, and counted by reason with the first one named."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from slam_jax.base.errors import InputError

FEW = 100  # examples; while fewer are read, a share says little
ATTEMPTS = 100  # damaged examples in a row
THREADS = 16
AHEAD = 4096  # looks that may wait for a thread
S = TypeVar("S")
T = TypeVar("T")


class Rejected(Exception):
    """An example cannot be used.

    Attributes:
      reason: a few words, the same for all examples of its kind: they are counted by it.
      name: the example's, such as "00003.tar/000123".
      asked_for: a filter of the user's took it out; it does not count as damage.
    """

    def __init__(self, reason: str, name: str, asked_for: bool = False):
        super().__init__(reason, name, asked_for)  # all of them, so that workers can send it
        self.reason, self.name, self.asked_for = reason, name, asked_for


@dataclass
class Rejects:
    """How many examples were passed over, by reason.

    Attributes:
      counts: by reason.
      first: the first example's name, by reason.
      asked_for: reasons that are filters of the user's.
    """

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    asked_for: set[str] = field(default_factory=set)

    def add(self, rejected: Rejected, count: int = 1) -> None:
        """Counts one, or several that are like it."""
        self.first.setdefault(rejected.reason, rejected.name)
        self.counts[rejected.reason] = self.counts.get(rejected.reason, 0) + count
        if rejected.asked_for:
            self.asked_for.add(rejected.reason)

    def update(self, later: "Rejects") -> None:
        """Adds what was counted later."""
        for reason, count in later.counts.items():
            again = Rejected(reason, later.first[reason], reason in later.asked_for)
            self.add(again, count)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def damaged(self) -> int:
        """How many of them no filter asked for."""
        return sum(n for reason, n in self.counts.items() if reason not in self.asked_for)

    def lines(self) -> Iterator[str]:
        """For each reason, the most frequent first: how many, why, and the first one's name."""
        for reason in sorted(self.counts, key=lambda reason: -self.counts[reason]):
            yield f"{self.counts[reason]} {reason} (first: {self.first[reason]})"

    def check(self, read: int, most: float, where: str, few: int = 0) -> None:
        """Refuses a source that is mostly damaged.

        Args:
          read: how many examples were read and used.
          most: the share of damaged ones that is borne.
          where: the source's name, for the message.
          few: while fewer than this are read, as many damaged ones are borne as of this many.

        Raises:
          InputError: more than that share are damaged.
        """
        if self.damaged > most * max(read + self.damaged, few):
            raise InputError(
                f"{where}: {self.damaged} of {read + self.damaged} examples cannot be used, more "
                f"than max_rejects = {most:g} allows: {'; '.join(self.lines())}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return asdict(self) | {"asked_for": sorted(self.asked_for)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Rejects":
        """What `to_dict` gave."""
        return cls(dict(content["counts"]), dict(content["first"]), set(content["asked_for"]))


def all_usable(look: Callable[[S], T], items: Sequence[S], rejects: Rejects) -> list[T]:
    """What a look at each of many examples gives, in their order.

    Args:
      look: called by threads, which mostly wait for a disk or a net; may raise Rejected.
      items: what it is called with.
      rejects: what is passed over is added to them.
    """

    def attempt(item: S) -> T | Rejected:
        try:
            return look(item)
        except Rejected as rejected:
            return rejected

    usable = []
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(desc="looking at images", total=len(items), unit="image", delay=2) as bar,
    ):
        for begin in range(0, len(items), AHEAD):
            for found in pool.map(attempt, items[begin : begin + AHEAD]):
                bar.update()
                if isinstance(found, Rejected):
                    rejects.add(found)
                else:
                    usable.append(found)
    return usable


def first_usable(
    read: Callable[[int, np.random.Generator], T],
    index: int,
    seed: int,
    count: int,
    rejects: Rejects,
    where: str,
) -> T:
    """Reads an example, or the first usable one of a sequence that its seed decides.

    Args:
      read: (index, random generator of this attempt) -> what is wanted; may raise Rejected.
      index: of the example.
      seed: its seed.
      count: how many examples there are.
      rejects: what is passed over is added to them.
      where: the source's name, for the message.

    Raises:
      InputError: nothing usable is found.
    """
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((seed, attempt))
        try:
            return read(index, rng)
        except Rejected as rejected:
            rejects.add(rejected)
            index = int(rng.integers(count))
    raise InputError(
        f"{where}: {ATTEMPTS} examples in a row cannot be used: {'; '.join(rejects.lines())}"
    )
