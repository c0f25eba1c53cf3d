"""Writes the folder that `prepared` reads, piece by piece: several processes may share the work,
and whenever one is killed the next one goes on."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from slam_jax.base.errors import InputError
from slam_jax.base.files import is_empty, write_whole
from slam_jax.base.json_file import read_json, write_json
from slam_jax.data.prepared import (
    EMPTY_FILE,
    GO_ON,
    INFO_FILE,
    PLAN_FILE,
    row_dtype,
    shard_name,
    state_of,
)
from slam_jax.data.rejects import Rejects

# One record in a chunk, for random access. Half of the bits are noise and do not compress.
WRITER = "group_size:1,uncompressed"
NOTES = ("source", "model.path", "model.revision", "model.variant")  # of a plan; not its content


def check_folder(folder: Path) -> None:
    """There is nothing in the way.

    Raises:
      InputError: the folder holds something else than latents.
    """
    if folder.exists() and not ((folder / PLAN_FILE).exists() or is_empty(folder)):
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
        self._content = _content(self._plan)
        facts = json.dumps(self._content, sort_keys=True).encode()
        self._plan_digest = hashlib.sha256(facts).hexdigest()
        self.shard_size = plan["shard_size"]
        self.shards = -(-plan["examples"] // self.shard_size)
        check_folder(folder)
        if (folder / PLAN_FILE).exists():
            self._compare()

    def _begin(self) -> None:
        """Writes the plan, before anything else; or finds that another process wrote one."""
        path = self.folder / PLAN_FILE
        with _one_line(self.folder):
            if not path.exists():
                write_json(path, self._plan)
        self._compare()

    def _compare(self) -> None:
        now, began = self._content, _content(read_json(self.folder / PLAN_FILE, GO_ON))
        for key in now | began:
            if began.get(key) == now.get(key):
                continue
            was, what = f"{key} = {began.get(key)!r}, but now it is {now.get(key)!r}", "options"
            if key == "identity":
                counts = f"{began.get('examples')} then, {now.get('examples')} now"
                was, what = f"other examples or captions ({counts})", "source and its options"
            raise InputError(
                f"{self.folder}: begun with {was}; use the {what} it was begun with, or another "
                "folder"
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
            record = read_json(note, GO_ON)
            made = record.get("size"), record.get("digest"), record.get("plan")
            return record if made == (*state_of(path), self._plan_digest) else None
        except (InputError, OSError):
            return None

    @contextmanager
    def shard(self, shard: int) -> Iterator["ShardWriter"]:
        """Makes a shard: it is there when the context ends, and nothing of it after an exception.

        Raises:
          InputError: it cannot be written, or another process is making it.
        """
        self._begin()
        path = self.folder / shard_name(shard)
        begun, note = path.with_name(f".{path.name}.tmp"), path.with_suffix(".json")
        with _locked(begun, path):
            try:
                with closing(ShardWriter(begun, path, self.dtype)) as writer:
                    yield writer
                with _one_line(path):
                    size, digest = state_of(begun)
                    record = {"count": writer.count, "size": size, "digest": digest}
                    record |= {"rejects": writer.rejects.to_dict(), "plan": self._plan_digest}
                    note.unlink(missing_ok=True)
                    begun.replace(path)
                    write_whole(note, json.dumps(record))
            finally:
                begun.unlink(missing_ok=True)

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
            info = {
                **self._plan,
                "counts": counts,
                "rejects": rejects.to_dict(),
                "empty": hashlib.sha256((self.folder / EMPTY_FILE).read_bytes()).hexdigest(),
                "shards": [
                    {key: record[key] for key in ("count", "size", "digest")} for record in records
                ],
            }
            write_json(self.folder / INFO_FILE, info)
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
        self.count, self.rejects, self._path, self._dtype = 0, Rejects(), path, dtype
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


def _content(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Of a plan, what decides the content, groups and options joined by dots: the same data found
    under another path goes on with the same folder."""
    content = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name not in NOTES:
            is_group = isinstance(value, Mapping)
            content |= _content(value, f"{name}.") if is_group else {name: value}
    return content


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
