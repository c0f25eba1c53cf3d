"""The batch pipeline: a seeded shuffle each epoch, forever, from any position on.

Batch n of a run depends on the source, the batch size and the seed only: neither on how many
workers read it, nor on how many processes share it, nor on where the run began.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grain
import numpy as np

from slam_jax.data.rejects import Rejects
from slam_jax.data.workers import elements, in_workers
from slam_jax.errors import InputError

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
        """


class Batches:
    """Endless batches, every example once an epoch in an order that (seed, epoch) decides.

    Args:
      source: the examples.
      batch_size: examples a batch, over all processes.
      seed: of the shuffle and of the examples' seeds.
      workers: processes that read; 0: a thread of this process does.
      process, processes: which part of each batch is this process's.
      max_rejects: the share of damaged examples that is borne.

    Attributes:
      rejects: what was passed over so far.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        workers: int = 0,
        process: int = 0,
        processes: int = 1,
        max_rejects: float = 1.0,
    ):
        self._source, self._batch_size, self._seed = source, batch_size, seed
        self._workers, self._max_rejects = workers, max_rejects
        share = batch_size // processes
        self._rows = slice(process * share, (process + 1) * share)
        self.rejects, self._read = Rejects(), 0

    def position(self, count: int) -> dict[str, Any]:
        """What a checkpoint after `count` batches has to keep; JSON-serialisable."""
        return {"batches": count, "source": self._source.identity}

    def find(self, position: dict[str, Any]) -> int:
        """How many batches came before a `position`.

        Raises:
          InputError: it is a position in another source.
        """
        if position.get("source") != self._source.identity:
            raise InputError(
                f"{self._source.name}: not the examples, or not the order of them, that the run "
                "began with; give it the same data, or choose another workdir"
            )
        return position["batches"]

    def iterate(self, start: int, put: Callable[[Batch], Any] = lambda batch: batch) -> Iterator:
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
        dataset = dataset.map(lambda pair: put(self._count(*pair)))
        dataset = grain.experimental.ThreadPrefetchIterDataset(
            dataset, prefetch_buffer_size=READ_AHEAD
        )
        yield from elements(dataset, source.name)

    def _count(self, batch: Batch, rejects: Rejects) -> Batch:
        self.rejects.update(rejects)
        self._read += self._rows.stop - self._rows.start
        self.rejects.check(self._read, self._max_rejects, self._source.name)
        return batch
