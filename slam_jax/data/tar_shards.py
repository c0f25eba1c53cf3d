"""Tar shards of images with captions, as LAION, CC12M and img2dataset have them: read at random,
without unpacking."""

import hashlib
import json
import os
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.data import metadata, tar_index
from slam_jax.data.examples import Example, Filters
from slam_jax.data.rejects import Rejected, Rejects
from slam_jax.data.shards import Shard, describe, find
from slam_jax.data.tar_scan import Index, text_of

OPEN_FILES = 64
GAP = 2**16  # bytes between image and caption that are read with them
ROW = np.dtype(
    [
        ("shard", "<i4"),
        ("image", "<i8", 2),
        ("caption", "<i8", 2),
        ("in_record", "?"),  # the caption is
        ("shape", "<i4", 2),
        ("key", "<i8", 2),  # where it begins and ends in the bytes of all keys
        ("crc", "<u4"),
    ]
)


class TarShards:
    """Examples in tar shards: for each key an image and its caption, in key.txt, key.caption or
    key.json.

    Args:
      pattern: which shards, as `shards.find` reads it.
      filters: which examples are wanted.
      caption_key: where in the JSON the captions are, which then come before a text; "": a text
        comes before the JSON's "caption".
      cache: folder of what is known of shards; None: the user's.

    Attributes:
      sizes: height and width of each image, int32 [N, 2].

    Raises:
      InputError: there is no such shard, it cannot be read, or no example of all can be used.
    """

    def __init__(
        self,
        pattern: str,
        filters: Filters = Filters(),  # noqa: B008 - it is frozen
        caption_key: str = "",
        cache: Path | None = None,
    ):
        self.name, self.rejects = pattern, Rejects()
        self._caption_key = caption_key
        self._shards = find(pattern)
        indices = tar_index.indices_of(self._shards, cache or _users_cache())
        rows = [self._choose(n, index, filters) for n, index in enumerate(indices)]
        self._keys = np.concatenate([index.keys for index in indices])
        begins = np.cumsum([0, *(index.keys.size for index in indices)])
        for chosen, begin in zip(rows, begins, strict=False):
            chosen["key"] += begin
        self._rows = np.concatenate(rows)
        if not len(self._rows):
            raise InputError(
                f"{pattern}: no example can be used: {'; '.join(self.rejects.lines())}"
            )
        self.sizes = self._rows["shape"]
        self.identity = self._digest()
        self._open_file = lru_cache(OPEN_FILES)(_File)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._rows[index]
        shard = self._shards[row["shard"]]
        name = _name(shard, text_of(self._keys[slice(*row["key"])]))
        image, caption = self._read(shard, [tuple(map(int, row[p])) for p in ("image", "caption")])
        if not row["in_record"]:
            return Example(name, image, metadata.text_captions(caption, name))
        value = metadata.record(caption, name).get(self._caption_key or "caption")
        return Example(name, image, metadata.captions(value, name))

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens the files again.
        return {name: value for name, value in vars(self).items() if name != "_open_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_file = lru_cache(OPEN_FILES)(_File)

    def _choose(self, number: int, index: Index, filters: Filters) -> np.ndarray:
        """The usable rows of a shard; the others are counted."""
        shard = self._shards[number]
        reasons, codes, in_record = _verdicts(index, self._caption_key, filters.max_watermark < 1)
        for code in dict.fromkeys(codes[codes > 0].tolist()):
            same = np.flatnonzero(codes == code)
            key = index.key(same[0])
            self.rejects.add(Rejected(reasons[code], _name(shard, key)), len(same))
            if not key:
                print(f"note: {shard.location}: {reasons[code]}", file=sys.stderr)
        kept = np.flatnonzero(codes == 0)
        for unwanted in _unwanted(index.rows, kept, filters):
            first = unwanted[0]
            try:
                facts = index.rows[first]
                name = _name(shard, index.key(first))
                filters.check(name, *facts["shape"], facts["watermark"])
            except Rejected as rejected:
                self.rejects.add(rejected, len(unwanted))
                kept = np.setdiff1d(kept, unwanted)
        rows = index.rows[kept]
        chosen = np.zeros(len(rows), ROW)
        chosen["shard"], chosen["in_record"] = number, in_record[kept]
        for name in ("image", "shape", "crc"):
            chosen[name] = rows[name]
        chosen["caption"] = np.where(in_record[kept, None], rows["record"], rows["text"])
        ends = np.append(index.rows["key"], 0)
        chosen["key"] = np.stack([ends[kept - 1], ends[kept]], axis=1)
        return chosen

    def _digest(self) -> str:
        """Of which shards, apart from where they are, and which rows of them."""
        shards = json.dumps([(shard.name, shard.size) for shard in self._shards])
        digest = hashlib.sha256(shards.encode())
        for name in ("shard", "image", "caption", "in_record", "crc"):
            digest.update(self._rows[name].tobytes())
        return digest.hexdigest()

    def _read(self, shard: Shard, places: list[tuple[int, int]]) -> list[bytes]:
        """The bytes at places (offset, size) of a shard."""
        begin, end = min(at for at, _ in places), max(at + size for at, size in places)
        # One request for all, if not much lies between.
        if end - begin > sum(size for _, size in places) + GAP:
            return [self._read(shard, [place])[0] for place in places]
        content = (
            self._local(shard, begin, end) if shard.system is None else _remote(shard, begin, end)
        )
        if len(content) != end - begin:
            raise _changed(shard)
        return [content[at - begin : at - begin + size] for at, size in places]

    def _local(self, shard: Shard, begin: int, end: int) -> bytes:
        try:
            file = self._open_file(shard.location)
            status = os.fstat(file.descriptor)
            if (status.st_size, str(status.st_mtime_ns)) != (shard.size, shard.version):
                raise _changed(shard)
            return os.pread(file.descriptor, end - begin, begin)
        except OSError as error:
            raise InputError(f"{shard.location}: cannot be read: {describe(error)}") from error


class _File:
    """An open file, which closes when the last thread has done with it."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _remote(shard: Shard, begin: int, end: int) -> bytes:
    for pause in (1, 2, None):  # seconds before it is tried again
        try:
            return shard.system.cat_file(shard.location, start=begin, end=end)
        except FileNotFoundError as error:
            raise _changed(shard) from error
        # Libraries of stores have errors of their own; most pass.
        except Exception as error:
            if pause is None:
                raise InputError(f"{shard.location}: cannot be read: {describe(error)}") from error
        time.sleep(pause)
    raise AssertionError("unreachable")


def _changed(shard: Shard) -> InputError:
    return InputError(
        f"{shard.location}: is gone or has changed since it was opened; put it back, or start again"
    )


def _name(shard: Shard, key: str) -> str:
    return f"{shard.name}/{key}" if key else shard.name


def _verdicts(
    index: Index, caption_key: str, needs_record: bool
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Reasons; for each row which of them is why it cannot be used, 0: none; and whether its
    caption is in the record."""
    reasons, rows = list(index.reasons), index.rows

    def code(reason: str) -> int:
        if reason not in reasons:
            reasons.append(reason)
        return reasons.index(reason)

    name = caption_key or "caption"
    whole = [isinstance(kind, dict) for kind in index.kinds]
    said = [kind if isinstance(kind, str) else kind.get(name, "no caption") for kind in index.kinds]
    # Rows without a record have kind -1.
    in_kind = np.array([*map(code, said), 0])[rows["kind"]]
    damaged = ~np.array([*whole, True])[rows["kind"]]
    in_record = (rows["kind"] >= 0) & (rows["text"][:, 0] < 0)
    if caption_key:
        in_record |= (rows["kind"] >= 0) & (in_kind == 0)
    codes = np.where(in_record, in_kind, rows["text_reason"])
    if needs_record:
        codes = np.where((codes == 0) & damaged, in_kind, codes)
    return reasons, np.where(rows["reason"] > 0, rows["reason"], codes), in_record


def _unwanted(rows: np.ndarray, kept: np.ndarray, filters: Filters) -> list[np.ndarray]:
    """Which of the rows kept `filters.check` takes out, those with the same reason together."""
    watermark, small = rows["watermark"][kept], rows["shape"][kept].min(axis=1) < filters.min_size
    masks = [small]
    if filters.max_watermark < 1:
        masks += [~small & np.isnan(watermark), ~small & (watermark > filters.max_watermark)]
    return [kept[mask] for mask in masks if mask.any()]


def _users_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "slam_jax" / "tar_index"
