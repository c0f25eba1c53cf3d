"""Processes that read, and what they read, by grain."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from contextlib import closing
from functools import partial
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from slam_jax.base.errors import InputError


def in_workers(dataset: grain.IterDataset, workers: int, ready: int) -> grain.IterDataset:
    """The same elements in the same order, read by other processes.

    Args:
      dataset: is pickled.
      workers: how many processes.
      ready: elements that each may have ready.
    """
    if not flags.FLAGS.is_parsed():  # where no absl program runs, grain's own have their defaults
        flags.FLAGS(["slam_jax"])
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=ready)
    read = dataset.mp_prefetch(options, worker_init_fn=lambda *_: _begin())
    # Out of the memory shared with a worker, which would stay behind if it was in use at the end.
    return read.map(partial(jax.tree.map, _own))


def _own(leaf: Any) -> Any:
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf


def _begin() -> None:
    """Leaves Ctrl-C, which a terminal sends to all processes, to the one that trains; and ends with
    it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow():
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def elements(dataset: grain.IterDataset, name: str) -> Generator[Any]:
    """The elements; to be closed, which ends the processes.

    Args:
      dataset: may have workers.
      name: of what they read, for the message.

    Raises:
      InputError: a worker was killed.
    """
    iterator = None
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
