"""Tar shards of images with captions, as LAION, CC12M and img2dataset have them: read at random,
without unpacking."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.data import metadata
from slam_jax.data.examples import Example, Filters
from slam_jax.data.rejects import Rejected, Rejects
from slam_jax.data.shards import Shard, find
from slam_jax.data.tar_index import indices_of

GAP = 2**16  # bytes between image and caption that are read with them


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
        self.name, self.rejects, self._caption_key = pattern, Rejects(), caption_key
        self._shards, self._rows = find(pattern), []
        indices = indices_of(self._shards, cache or _users_cache(), caption_key)
        for shard, index in zip(self._shards, indices, strict=True):
            if index.problem:
                print(f"note: {shard.location}: {index.problem}", file=sys.stderr)
            self.rejects.update(index.rejects)
            self._rows.append(self._wanted(shard, index.rows, filters))
        self._ends = np.cumsum([len(rows) for rows in self._rows])
        if not len(self):
            reasons = "; ".join(self.rejects.lines())
            raise InputError(f"{pattern}: no example can be used: {reasons}")
        self.sizes = np.concatenate([rows["shape"] for rows in self._rows])
        # Of which shards, apart from where they are, and which examples of them.
        facts = json.dumps([(shard.name, shard.size) for shard in self._shards])
        digest = hashlib.sha256(facts.encode())
        for rows in self._rows:
            digest.update(rows.tobytes())
        self.identity = digest.hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard, row = self._shards[number], self._rows[number][index - self._ends[number]]
        name = _name(shard, row)
        image, caption = _read(shard, row["image"].tolist(), row["caption"].tolist())
        if row["in_record"]:
            caption = metadata.record(caption, name).get(self._caption_key or "caption")
        return Example(name, image, metadata.captions(caption, name))

    def _wanted(self, shard: Shard, rows: np.ndarray, filters: Filters) -> np.ndarray:
        """The rows that filters let pass; the others are counted."""
        kept = np.ones(len(rows), bool)
        for reason, unwanted in filters.unwanted(rows["shape"], rows["watermark"]).items():
            if unwanted.any():
                first = _name(shard, rows[unwanted.argmax()])
                self.rejects.add(Rejected(reason, first, asked_for=True), int(unwanted.sum()))
                kept &= ~unwanted
        return rows[kept]


def _name(shard: Shard, row: np.void) -> str:
    return f"{shard.name}/{metadata.printable(row['key'].decode(errors='replace'))}"


def _read(shard: Shard, image: list[int], caption: list[int]) -> tuple[bytes, bytes]:
    """The bytes at both places (offset, size) of a shard."""
    (first, size), (last, more) = sorted((image, caption))
    if last - first > size + GAP:
        contents = shard.read(first, first + size), shard.read(last, last + more)
    else:  # one request for both
        content = shard.read(first, last + more)
        contents = content[:size], content[last - first :]
    return contents if first == image[0] else (contents[1], contents[0])


def _users_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "slam_jax" / "tar_index"
