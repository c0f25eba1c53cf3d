"""Writes the folder that `prepared` reads, piece by piece: several processes may share the work,
and whenever one is killed the next one goes on."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from slam_jax.base.errors import InputError
from slam_jax.base.files import write_whole
from slam_jax.data.prepared import (
    EMPTY_FILE,
    INFO_FILE,
    PLAN_FILE,
    read_json,
    row_dtype,
    shard_name,
    state_of,
)
from slam_jax.data.rejects import Rejects

# One record in a chunk, for random access. Half of the bits are noise and do not compress.
WRITER = "group_size:1,uncompressed"
NOTES = ("source", "model.path", "model.revision", "model.variant")  # of a plan; not its content
PACKAGES = ("array_record", "jax", "numpy", "pillow")


def check_folder(folder: Path) -> None:
    """There is nothing in the way.

    Raises:
      InputError: the folder holds something else than latents.
    """
    if not folder.exists() or (folder / PLAN_FILE).exists():
        return
    # What a killed process left of its plan is no reason.
    if not folder.is_dir() or any(
        not other.name.startswith(f".{PLAN_FILE}") for other in folder.iterdir()
    ):
        raise InputError(
            f"{folder}: not empty, and nothing that slam-jax prepare began; choose another folder"
        )


class Store:
    """A folder of latents in the making.

    Args:
      folder: to make, or to go on with.
      plan: whatever decides the content, JSON-serialisable; has "examples", the number that the
        source has, "shard_size", how many of them a shard is made of, and "fields".

    Raises:
      InputError: the folder holds something else, or was begun with another plan, or cannot be
        written.

    Attributes:
      shard_size: as in the plan.
      shards: how many there will be.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]):
        self.folder, self._plan = folder, json.loads(json.dumps(plan))
        self.dtype = row_dtype(plan["fields"])
        # Of the content: the same data found under another path goes on with the same folder.
        content = {k: v for k, v in _flat(self._plan).items() if k not in NOTES}
        self._plan_digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.shard_size = plan["shard_size"]
        self.shards = -(-plan["examples"] // self.shard_size)
        self._content = content
        with _one_line(folder):
            check_folder(folder)
            if (folder / PLAN_FILE).exists():
                self._compare()

    def _begin(self) -> None:
        """Writes the plan, before anything else; or finds that another process wrote one."""
        path = self.folder / PLAN_FILE
        with _one_line(self.folder):
            if not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_whole(path, json.dumps(self._plan, indent=2))
        self._compare()

    def _compare(self) -> None:
        content, began = self._content, _flat(read_json(self.folder / PLAN_FILE))
        for key in [*content, *began]:
            if key in NOTES or began.get(key) == content.get(key):
                continue
            if key == "identity":
                raise InputError(
                    f"{self.folder}: begun with other examples or captions ("
                    f"{began.get('examples')} then, {content.get('examples')} now); use the source "
                    "and its options that it was begun with, or another folder"
                )
            raise InputError(
                f"{self.folder}: begun with {key} = {began.get(key)!r}, but now it is "
                f"{content.get(key)!r}; use the options it was begun with, or another folder"
            )

    def count(self, shard: int) -> int:
        """How many of the source's examples a shard is made of."""
        return min(self.shard_size, self._plan["examples"] - shard * self.shard_size)

    def done(self, shard: int) -> Rejects | None:
        """What was passed over in a finished shard; None: it is still to be made."""
        record = self._record(shard)
        return None if record is None else Rejects.from_dict(record["rejects"])

    def _record(self, shard: int) -> dict[str, Any] | None:
        path = self.folder / shard_name(shard)
        if not (note := path.with_suffix(".json")).exists():
            return None
        try:
            record = read_json(note)
            made = (record["size"], record["digest"], record["plan"])
            return record if made == (*state_of(path), self._plan_digest) else None
        except (InputError, OSError, KeyError):
            return None

    @contextmanager
    def shard(self, shard: int) -> Iterator["ShardWriter"]:
        """Makes a shard: it is there when the context ends, and nothing of it after an exception.

        Raises:
          InputError: it cannot be written, or another process is making it.
        """
        self._begin()
        path = self.folder / shard_name(shard)
        unfinished, note = path.with_name(f".{path.name}.tmp"), path.with_suffix(".json")
        with _locked(unfinished, path):
            try:
                writer = ShardWriter(unfinished, path, self.dtype)
                try:
                    yield writer
                finally:
                    writer.close()
                with _one_line(path):
                    size, digest = state_of(unfinished)
                    record = {
                        "count": writer.count,
                        "size": size,
                        "digest": digest,
                        "rejects": writer.rejects.to_dict(),
                        "plan": self._plan_digest,
                    }
                    note.unlink(missing_ok=True)
                    unfinished.replace(path)
                    write_whole(note, json.dumps(record))
            finally:
                unfinished.unlink(missing_ok=True)

    @property
    def has_empty(self) -> bool:
        """Whether the empty prompt's fields are there."""
        return (self.folder / EMPTY_FILE).exists()

    def write_empty(self, row: np.ndarray) -> None:
        """Keeps the empty prompt's fields.

        Args:
          row: structured, as `empty_dtype` says.

        Raises:
          InputError: it cannot be written.
        """
        self._begin()
        with _one_line(self.folder / EMPTY_FILE):
            write_whole(self.folder / EMPTY_FILE, row.tobytes())

    def finish(self, opening: Rejects, max_rejects: float) -> dict[str, Any] | None:
        """Writes info.json if every shard is there; returns it, or None.

        Args:
          opening: what was passed over when the source was opened.
          max_rejects: the share of damaged examples that is borne.

        Raises:
          InputError: it cannot be written, too much is damaged, or there is no usable example.
        """
        looked = (self._record(shard) for shard in range(self.shards))
        records = [record for record in looked if record is not None]
        if len(records) < self.shards:
            return None
        rejects = Rejects()
        for part in (opening, *(Rejects.from_dict(record["rejects"]) for record in records)):
            rejects.update(part)
        counts = {
            "examples": sum(record["count"] for record in records),
            "source": self._plan["examples"],
            "shards": self.shards,
        }
        if not counts["examples"]:
            why = "; ".join(rejects.lines())
            raise InputError(f"{self._plan['source']}: none of its examples can be used: {why}")
        rejects.check(counts["examples"], max_rejects, self._plan["source"])
        with _one_line(self.folder):
            for leftover in self.folder.glob(".*.tmp"):  # of processes that were killed
                if not leftover.name.startswith(f".{INFO_FILE}"):  # that one may still be alive
                    leftover.unlink(missing_ok=True)
            info = {
                **self._plan,
                "counts": counts,
                "rejects": rejects.to_dict(),
                "empty": hashlib.sha256((self.folder / EMPTY_FILE).read_bytes()).hexdigest(),
                "versions": {name: metadata.version(name) for name in PACKAGES},
                "shards": [
                    {key: record[key] for key in ("count", "size", "digest")} for record in records
                ],
            }
            write_whole(self.folder / INFO_FILE, json.dumps(info, indent=2))
        return info


class ShardWriter:
    """A shard's records and what was passed over.

    Args:
      file: to write.
      path: what it will be called, for messages.
      dtype: of a record.

    Attributes:
      count: how many records there are.
      rejects: to be added to.
    """

    def __init__(self, file: Path, path: Path, dtype: np.dtype):
        self.count, self.rejects = 0, Rejects()
        self._path, self._dtype = path, dtype
        with _one_line(path):
            self._records = ArrayRecordWriter(str(file), WRITER)

    def write(self, fields: Mapping[str, np.ndarray]) -> None:
        """Appends examples, stacked along a leading axis.

        Raises:
          InputError: they cannot be written.
        """
        rows = np.empty(len(fields["moments"]), self._dtype)
        for name in self._dtype.names or ():
            rows[name] = fields[name]
        with _one_line(self._path):
            for row in rows:
                self._records.write(row.tobytes())
        self.count += len(rows)

    def close(self) -> None:
        """Ends the file.

        Raises:
          InputError: not all could be written.
        """
        with _one_line(self._path):
            self._records.close()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    flat = {}
    for key, value in tree.items():
        is_group = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if is_group else {f"{prefix}{key}": value}
    return flat


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turns what a full disk or a missing permission leads to into one line."""
    try:
        yield
    # array_record raises RuntimeError for files.
    except (OSError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be written: {why}; what is finished is kept, the same command goes on"
        ) from error


@contextmanager
def _locked(file: Path, shard: Path) -> Iterator[None]:
    """Keeps other processes from writing the file too; the lock goes with a killed process."""
    with _one_line(shard):
        held = file.open("ab")
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{shard}: another process is making it; give each one a --part of its own"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
