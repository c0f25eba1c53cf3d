"""The indices of tar shards, kept in a cache of the user's."""

import hashlib
import json
import multiprocessing
import os
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from tqdm import tqdm

from slam_jax.base.errors import InputError
from slam_jax.base.files import unfinished
from slam_jax.data.rejects import Rejects
from slam_jax.data.shards import Shard, first_line
from slam_jax.data.tar_scan import Index, scan

FORMAT = 3  # of the index files; also to be raised when other examples are rejected than before
MANY = 4 * 2**30  # bytes to index from which on processes are worth their start
THREADS = 16  # that wait for a store


def location(folder: Path, shard: Shard, caption_key: str) -> Path:
    """Where the index of a shard is kept."""
    facts = json.dumps([FORMAT, caption_key, shard.location, shard.size, shard.version])
    return folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.npz"


def load(path: Path) -> Index | None:
    """Reads an index; None: there is none that is whole."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            rejects = Rejects.from_dict(json.loads(str(arrays["rejects"])))
            return Index(arrays["rows"], rejects, str(arrays["problem"]))
    # Whatever a damaged file leads numpy to.
    except Exception:
        return None


def save(path: Path, index: Index) -> None:
    """Writes an index that is whole or not there at all, whoever else writes it too.

    Raises:
      InputError: it cannot be written.
    """
    rejects = json.dumps(index.rejects.to_dict())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(path) as beside, beside.open("wb") as file:
            np.savez(file, rows=index.rows, rejects=rejects, problem=index.problem)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot write the index of tar shards there ({error.strerror}); name "
            "another folder with data.index (--index)"
        ) from error


def indices_of(shards: list[Shard], folder: Path, caption_key: str) -> list[Index]:
    """The indices of shards, from the cache where they are in it.

    Args:
      shards: which.
      folder: the cache.
      caption_key: as `scan` takes it.

    Raises:
      InputError: a shard cannot be read, or an index cannot be written.
    """
    indices: dict[Shard, Any] = {
        shard: load(location(folder, shard, caption_key)) for shard in shards
    }
    if missing := [shard for shard, index in indices.items() if index is None]:
        make = partial(_make, folder, caption_key)
        with _pool(missing) as pool:
            made = tqdm(pool.map(make, missing), "indexing", len(missing), unit="shard")
            indices.update(zip(missing, made, strict=True))
    return list(indices.values())


def _pool(shards: list[Shard]) -> Executor:
    """Indexing keeps a core busy; only waiting for a store leaves threads something to win."""
    if sum(shard.size for shard in shards) > MANY:
        return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))
    return ThreadPoolExecutor(1 if all(shard.is_local for shard in shards) else THREADS)


def _make(folder: Path, caption_key: str, shard: Shard) -> Index:
    try:
        with shard.system.open(shard.path, "rb") as file:
            index = scan(cast(BinaryIO, file), shard.size, shard.name, caption_key)
    # Libraries of stores have errors of their own.
    except Exception as error:
        raise InputError(f"{shard.location}: cannot be read: {first_line(error)}") from error
    save(location(folder, shard, caption_key), index)
    return index
