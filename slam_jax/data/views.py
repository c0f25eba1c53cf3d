"""A source's examples in its order, cropped, and read ahead of whoever encodes them."""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Float, UInt8

from slam_jax.data.examples import Examples
from slam_jax.data.image_text import Transform
from slam_jax.data.rejects import Rejected, Rejects
from slam_jax.data.workers import elements, in_workers

THREADS = 16  # that read; they also wait, for a disk or a bucket
THREADS_OF_A_WORKER = 4


class Views(NamedTuple):
    """An example as it is encoded.

    Attributes:
      images: the crop, and behind it its mirrored twin where there are twins.
      time_ids: SDXL's, of each.
      captions: all that the example has.
    """

    images: UInt8[np.ndarray, "V R R 3"]
    time_ids: Float[np.ndarray, "V 6"]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Cutter:
    """index -> views of the example, or why it cannot be used; can be pickled.

    Attributes:
      examples: the source.
      transform: its crop is where the crop is from, its flip adds a mirrored twin.
      seed: with an example's index, decides a random crop.
    """

    examples: Examples
    transform: Transform
    seed: int

    def __call__(self, index: int) -> Views | Rejected:
        place = np.random.default_rng((self.seed, index)).random()
        try:
            example = self.examples[index]
            crop = self.transform.cut(example, place if self.transform.crop == "random" else 0.5)
        except Rejected as rejected:
            return rejected
        crops = [crop, self.transform.mirror(crop)] if self.transform.flip else [crop]
        return Views(
            np.stack([crop.image for crop in crops]),
            np.stack([crop.time_ids for crop in crops]),
            example.captions,
        )


@dataclass
class Group:
    """Examples that are encoded at once.

    Attributes:
      shard: which they go to.
      views: of the usable ones.
      read: how many of the source's examples were read for it.
      rejects: those of them that were passed over.
    """

    shard: int
    views: list[Views] = field(default_factory=list)
    read: int = 0
    rejects: Rejects = field(default_factory=Rejects)


def groups(
    stream: Iterator[Views | Rejected], counts: Mapping[int, int], size: int
) -> Iterator[Group]:
    """Usable examples by `size`; the last group of each shard has what is left, or nothing.

    Args:
      stream: the examples of the shards, one shard after the other.
      counts: shard -> how many of the source's examples it is made of.
      size: of a group.
    """
    for shard, count in counts.items():
        group = Group(shard)
        for item in islice(stream, count):
            if len(group.views) == size:
                yield group
                group = Group(shard)
            group.read += 1
            if isinstance(item, Rejected):
                group.rejects.add(item)
            else:
                group.views.append(item)
        yield group


def read_ahead(
    read: Callable[[int], Any],
    indices: Any,
    workers: int,
    ahead: int,
) -> Generator[Any]:
    """What `read` gives for each index, in order; to be closed.

    Args:
      read: to be called; pickled for worker processes.
      indices: for which; a sequence of integers, or what has a length and can be indexed.
      workers: processes that read; 0: threads of this one do.
      ahead: how many results may wait to be used, about.

    Raises:
      InputError: a worker process was killed; or from `read`.
    """
    threads = THREADS_OF_A_WORKER if workers else THREADS
    each = max(ahead // max(workers, 1), threads)
    dataset = grain.MapDataset.source(indices).map(read)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(threads, each))
    yield from elements(in_workers(dataset, workers, each) if workers else dataset, "images")
