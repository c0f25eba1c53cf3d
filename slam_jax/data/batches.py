"""The batch pipeline: a seeded shuffle each epoch, forever, from any position on.

Batch n of a run depends on the source, the batch size and the seed only: neither on how many
workers read it, nor on how many processes share it, nor on where the run began.
"""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Protocol

import grain
import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.data.rejects import FEW, Rejects
from slam_jax.data.workers import elements, in_workers

Batch = dict[str, np.ndarray]
READ_AHEAD = 2  # batches that are ready while a step is computed


class Source(Protocol):
    """Examples that can be read in any order, many at a time.

    Attributes:
      name: what the user called it, for messages.
      identity: changes when there are other examples or when they are in another order.
    """

    name: str
    identity: str

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> tuple[Batch, Rejects]:
        """The examples with these indices, stacked along a new leading axis; and what was passed
        over. In the place of an example that cannot be used stands another, which index and seed
        decide.

        Args:
          indices: which, [B].
          seeds: one for each, [B], for whatever is random in reading it, such as a crop.

        Raises:
          InputError: the source cannot be read any more, or nothing usable is found in it.
        """
        ...


class Batches:
    """Endless batches, every example once an epoch in an order that (seed, epoch) decides.

    Args:
      source: the examples.
      batch_size: examples a batch, over all processes.
      seed: of the shuffle and of the examples' seeds.
      workers: processes that read; 0: a thread of this process does.
      max_rejects: the share of damaged examples that is borne.
      share: which part of each batch is this process's, and of how many: the parts are equal, and
        one behind the other.

    Attributes:
      rejects: what was passed over so far, in the batches that were taken.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        workers: int = 0,
        max_rejects: float = 1.0,
        share: tuple[int, int] = (0, 1),
    ):
        self._source, self._batch_size, self._seed = source, batch_size, seed
        self._workers, self._max_rejects = workers, max_rejects
        process, processes = share
        rows = batch_size // processes
        self._rows = slice(process * rows, (process + 1) * rows)
        self.rejects, self._read = Rejects(), 0

    def position(self, count: int) -> dict[str, Any]:
        """What a checkpoint has to keep when `count` batches were taken; JSON-serialisable."""
        return {
            "batches": count,
            "source": self._source.identity,
            "examples": len(self._source),
            "rejects": self.rejects.to_dict(),
            "read": self._read,  # how many examples these are of: of one process's share
        }

    def restore(self, position: dict[str, Any]) -> int:
        """How many batches were taken at a `position`; what was passed over before counts too.

        Raises:
          InputError: it is a position in another source.
        """
        check_position(self._source, position)
        self.rejects, self._read = Rejects.from_dict(position["rejects"]), position["read"]
        return position["batches"]

    def iterate(self, start: int, put: Callable[[Batch], Any] = lambda batch: batch) -> Generator:
        """Batches from number `start` on, read ahead; to be closed.

        Args:
          start: how many batches to leave out.
          put: applied to each batch ahead of its use, such as to put it on devices.

        Raises:
          InputError: more than the borne share of the examples is damaged, or a worker was killed.
        """
        source, rows = self._source, self._rows
        indices = grain.MapDataset.range(len(source)).seed(self._seed).shuffle().repeat()
        seeded = indices.random_map(lambda index, rng: (index, rng.integers(2**31)))
        # Batches of indices, each then read at once.
        chosen = seeded.batch(self._batch_size)[start:]
        dataset = chosen.map(lambda pairs: source.read(*(part[rows] for part in pairs)))
        dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if self._workers:
            dataset = in_workers(dataset, self._workers, READ_AHEAD)
        dataset = dataset.map(lambda pair: (put(pair[0]), pair[1]))
        dataset = grain.experimental.ThreadPrefetchIterDataset(
            dataset, prefetch_buffer_size=READ_AHEAD
        )
        with closing(elements(dataset, source.name)) as pairs:
            for batch, rejects in pairs:
                counted = Rejects.from_dict(self.rejects.to_dict())
                counted.update(rejects)
                read = self._read + rows.stop - rows.start
                counted.check(read, self._max_rejects, source.name, FEW)
                self.rejects, self._read = counted, read  # not of a batch that nobody gets
                yield batch


def check_position(source: Source, position: dict[str, Any]) -> None:
    """Makes sure that a position is one in the source.

    Raises:
      InputError: it is not.
    """
    if position.get("source") != source.identity:
        raise InputError(
            f"{source.name}: not the examples, or not the order of them, that the run began with "
            f"({position.get('examples')} then, {len(source)} now); give it the same data, or "
            "choose another workdir"
        )
