"""The indices of tar shards, kept in a cache of the user's."""

import hashlib
import json
import multiprocessing
import os
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from slam_jax.base.errors import InputError
from slam_jax.base.files import unfinished
from slam_jax.data.shards import Shard, describe
from slam_jax.data.tar_scan import ROW, Index, scan

FORMAT = 2  # of the index files; also to be raised when other examples are rejected than before
MANY = 4 * 2**30  # bytes to index from which on processes are worth their start
THREADS = 16  # that wait for a store


def location(folder: Path, shard: Shard) -> Path:
    """Where the index of a shard is kept."""
    facts = json.dumps([FORMAT, shard.location, shard.size, shard.version])
    return folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.npz"


def load(path: Path) -> Index | None:
    """Reads an index; None: there is none that is whole."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            reasons, kinds = json.loads(arrays["names"].tobytes())
            index = Index(arrays["rows"], arrays["keys"], reasons, kinds)
        return index if index.rows.dtype == ROW else None
    # Whatever a damaged file leads numpy to.
    except Exception:
        return None


def save(path: Path, index: Index) -> None:
    """Writes an index that is whole or not there at all, whoever else writes it too.

    Raises:
      InputError: it cannot be written.
    """
    names = np.frombuffer(json.dumps([index.reasons, index.kinds]).encode(), np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(path) as beside, beside.open("wb") as file:
            np.savez(file, rows=index.rows, keys=index.keys, names=names)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot write the index of tar shards there ({error.strerror}); name "
            "another folder with data.index (--index)"
        ) from error


def indices_of(shards: list[Shard], folder: Path) -> list[Index]:
    """The indices of shards, from the cache where they are in it.

    Args:
      shards: which.
      folder: the cache.

    Raises:
      InputError: a shard cannot be read, or an index cannot be written.
    """
    paths = [location(folder, shard) for shard in shards]
    indices = [load(path) for path in paths]
    missing = [number for number, index in enumerate(indices) if index is None]
    if missing:
        with _pool([shards[number] for number in missing]) as pool:
            work = [[whole[number] for number in missing] for whole in (shards, paths)]
            made = tqdm(pool.map(_make, *work), "indexing", len(missing), unit="shard")
            for number, index in zip(missing, made, strict=True):
                indices[number] = index
    return indices


def _pool(shards: list[Shard]) -> Executor:
    """Indexing keeps a core busy; only waiting for a store leaves threads something to win."""
    if sum(shard.size for shard in shards) > MANY:
        return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))
    remote = any(shard.system for shard in shards)
    return ThreadPoolExecutor(THREADS if remote else 1)


def _make(shard: Shard, path: Path) -> Index:
    try:
        with shard.open() as file:
            index = scan(file, shard.size)
    except Exception as error:
        # Libraries of stores have errors of their own.
        if shard.system is None and not isinstance(error, OSError):
            raise
        raise InputError(f"{shard.location}: cannot be read: {describe(error)}") from error
    save(path, index)
    return index
