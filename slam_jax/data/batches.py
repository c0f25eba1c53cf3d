"""The batch pipeline: a seeded shuffle each epoch, forever, with a position to save."""

from typing import Protocol

import grain
import numpy as np

Batch = dict[str, np.ndarray]
BatchIterator = grain.DatasetIterator  # next, and get_state / set_state of its position


class Source(Protocol):
    """Examples that can be read in any order, many at a time."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: np.ndarray, seeds: np.ndarray) -> Batch:
        """The examples with these indices, stacked along a new leading axis.

        Args:
          indices: which, [B].
          seeds: one for each, [B], for whatever is random in reading it, such as a crop.
        """


def batches(source: Source, batch_size: int, seed: int) -> BatchIterator:
    """Endless batches, every example once an epoch in an order that (seed, epoch) decides.

    Args:
      source: the examples.
      batch_size: examples a batch.
      seed: of the shuffle and of the examples' seeds.

    Returns:
      An iterator with `get_state` and `set_state`, a JSON-serialisable position.
    """
    indices = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    seeded = indices.random_map(lambda index, rng: (index, rng.integers(2**31)))
    # Shuffling whole indices and reading a batch at once: memory is read faster than threads could
    # be asked for it.
    return iter(
        seeded.batch(batch_size)
        .map(lambda pairs: source.__getitems__(*pairs))
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )
