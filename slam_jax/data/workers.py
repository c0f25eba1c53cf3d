"""Processes that read, and what they read, by grain."""

import gc
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import grain
from absl import flags

from slam_jax.errors import InputError


def in_workers(dataset: grain.IterDataset, workers: int, ready: int) -> grain.IterDataset:
    """The same elements in the same order, read by other processes.

    Args:
      dataset: is pickled.
      workers: how many processes.
      ready: elements that each may have ready.
    """
    if not flags.FLAGS.is_parsed():  # where no absl program runs, grain's own have their defaults
        flags.FLAGS(["slam_jax"])
    return dataset.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=ready))


def elements(dataset: grain.IterDataset, name: str) -> Iterator[Any]:
    """The elements; to be closed, which ends the processes.

    Args:
      dataset: may have workers.
      name: of what they read, for the message.

    Raises:
      InputError: a worker was killed.
    """
    try:
        with closing(iter(dataset)) as iterator:
            yield from iterator
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise InputError(
            f"{name}: a process that reads it was killed, perhaps for want of memory; go on with "
            "fewer workers"
        ) from error
    finally:
        # Shared memory of what came last hangs in a cycle of references in there.
        del iterator
        gc.collect()
