"""What is where in a tar shard, as webdataset groups it: found in one pass.

Members of one example have one key: the name up to the first dot of its last part. An index holds
facts only, so that it serves whatever options the shard is read with.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from slam_jax.data import images, metadata
from slam_jax.data.metadata import printable
from slam_jax.data.rejects import Rejected

ROLES = {
    **dict.fromkeys(images.EXTENSIONS, "image"),
    **{"txt": "text", "caption": "caption", "json": "record"},
}
PLACES = ("image", "text", "record")
ROW = np.dtype(
    [
        # Offset in the shard and size, in bytes; offset -1: there is none.
        *((place, "<i8", 2) for place in PLACES),
        ("shape", "<i4", 2),  # height and width
        ("watermark", "<f8"),
        ("key", "<i8"),  # where the key ends in the bytes of all keys
        ("reason", "<i4"),  # why the example cannot be used; 0: it can
        ("text_reason", "<i4"),  # why its text cannot
        ("kind", "<i4"),  # of its record
        ("crc", "<u4"),  # of the image's beginning, the caption and the record
    ]
)


@dataclass(frozen=True)
class Index:
    """Facts about a shard.

    Attributes:
      rows: one for each example, usable or not, [N] of ROW; one without a key is the shard itself.
      keys: all keys, one after the other, uint8.
      reasons: what a row's reasons mean.
      kinds: of records, by the row's kind: why the whole cannot be used; or for each name in it
        that could be a caption's "", or why that cannot be used.
    """

    rows: np.ndarray
    keys: np.ndarray
    reasons: list[str]
    kinds: list[str | dict[str, str]]

    def key(self, row: int) -> str:
        begin = self.rows["key"][row - 1] if row else 0
        return text_of(self.keys[begin : self.rows["key"][row]])


def text_of(key: np.ndarray) -> str:
    """A key from its bytes."""
    return printable(key.tobytes().decode(errors="replace"))


def scan(file: BinaryIO, size: int) -> Index:
    """Indexes a shard in one pass.

    Args:
      file: the shard.
      size: bytes of it.
    """
    groups = _Groups()
    try:
        for member in _members(file, size):
            groups.add(member, file)
        problem = "" if groups.of else "empty shard"
    except Rejected as rejected:
        problem = rejected.reason
    return groups.index(problem)


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """The members that are whole.

    Raises:
      Rejected: after them, the shard is not.
    """
    if not size:
        raise Rejected("shard of zero bytes", "")
    # What tarfile raises for damaged headers; errors of the disk or the net are others.
    damage = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError)
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closed below
    except damage as error:
        file.seek(0)
        compressed = file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")
        raise Rejected("compressed shard" if compressed else "not a tar", "") from error
    with tar:
        position = 0
        while True:
            try:
                member = tar.next()
            except damage as error:
                cut = file.tell() >= size
                raise Rejected("truncated shard" if cut else "damaged shard", "") from error
            if member is None:
                break
            tar.members.clear()  # tarfile would keep them all
            if tar.offset <= position or member.size < 0:
                raise Rejected("damaged shard", "")
            position = tar.offset
            if member.isreg() and member.offset_data + member.size > size:
                raise Rejected("truncated shard", "")
            yield member
        file.seek(tar.offset)
        rest = file.read(2**20)
    if len(rest) < tarfile.BLOCKSIZE:
        raise Rejected("truncated shard", "")
    if any(rest[: tarfile.BLOCKSIZE]):
        raise Rejected("damaged shard", "")
    if any(rest):
        raise Rejected("more data after the end of the shard", "")


@dataclass
class _Group:
    """What is known of one example."""

    run: int
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    suffix: str = ""  # of the image
    shape: tuple[int, int] = (0, 0)
    watermark: float = float("nan")
    reason: str = ""
    image_reason: str = ""
    text_reason: str = ""
    kind: int = -1
    crc: int = 0
    copies: list[set[str]] = field(default_factory=list)  # what examples of the same key have

    def verdict(self) -> str:
        """Why the example cannot be used, whatever the options."""
        if self.reason:
            return self.reason
        if "image" not in self.places:
            return "no image for a caption"
        return self.image_reason or ("no caption" if len(self.places) == 1 else "")


class _Groups:
    """The examples of a shard, by their keys."""

    def __init__(self):
        self.of: dict[str, _Group] = {}
        self._kinds: dict[Any, int] = {}
        self._last, self._run = None, 0

    def add(self, member: tarfile.TarInfo, file: BinaryIO) -> None:
        """Adds a member of the tar."""
        base = member.name.rpartition("/")[2]
        stem, _, suffix = base.partition(".")
        role = ROLES.get(suffix.lower())
        folders = member.name.split("/")
        if not stem or not role or member.isdir() or "__MACOSX" in folders:
            return
        key = member.name[: -len(suffix) - 1]
        if key != self._last:
            self._last, self._run = key, self._run + 1
        group = self.of.setdefault(key, _Group(self._run))
        if role in group.places:
            if role == "image" and self._run == group.run and suffix.lower() != group.suffix:
                group.reason = group.reason or "several images for one key"
            else:
                _add_copy(group, role)
            return
        group.places[role] = (member.offset_data, member.size)
        if member.name.startswith("/") or ".." in folders:
            group.reason = "unsafe name"
        elif not member.isreg() or member.issparse():
            group.reason = "link, device or sparse file in the shard"
        else:
            self._examine(group, role, suffix.lower(), member, file)

    def _examine(
        self, group: _Group, role: str, suffix: str, member: tarfile.TarInfo, file: BinaryIO
    ) -> None:
        def read(size: int) -> bytes:
            file.seek(member.offset_data)
            return file.read(size)

        beginning = read(min(member.size, metadata.BEGINNING))
        group.crc = zlib.crc32(beginning, group.crc)
        if role == "image":
            group.suffix = suffix
            try:
                group.shape = metadata.image_size(read, member.size, "")
            except Rejected as rejected:
                group.image_reason = rejected.reason
        elif member.size > metadata.LARGEST:
            group.reason = "file above 256 MB"
        elif role == "record":
            kind, group.watermark = _kind(read(member.size))
            group.kind = self._kinds.setdefault(kind, len(self._kinds))
        elif role == "text" or "text" not in group.places:
            group.text_reason = _reason(metadata.text_captions, read(member.size))

    def index(self, problem: str) -> Index:
        """The index; a `problem` is the shard's own."""
        rows, keys, reasons = [], [], {"": 0}

        def add(key: str, group: _Group, reason: str) -> None:
            keys.append(key.encode(errors="surrogateescape"))
            end = len(keys[-1]) + (rows[-1][5] if rows else 0)
            text = group.places.get("text") or group.places.get("caption")
            places = (group.places.get("image"), text, group.places.get("record"))
            codes = (reasons.setdefault(r, len(reasons)) for r in (reason, group.text_reason))
            none = (-1, 0)
            rows.append(
                (*(p or none for p in places), group.shape, group.watermark, end, *codes)
                + (group.kind, group.crc)
            )

        for key, group in self.of.items():
            reason = group.verdict()
            # What the cut left of an example is lost with the rest of the shard.
            cut = problem == "truncated shard" and key == self._last
            if not (cut and reason in ("no caption", "no image for a caption")):
                add(key, group, reason)
            for _ in group.copies:
                add(key, _Group(0), "duplicate key")
        if problem:
            add("", _Group(0), problem)
        kinds = [kind if isinstance(kind, str) else dict(kind) for kind in self._kinds]
        every_key = np.frombuffer(b"".join(keys), np.uint8)
        return Index(np.array(rows, ROW), every_key, list(reasons), kinds)


def _add_copy(group: _Group, role: str) -> None:
    """Counts examples that repeat a key: as many as repeat one role."""
    for copy in group.copies:
        if role not in copy:
            copy.add(role)
            return
    group.copies.append({role})


def _kind(content: bytes) -> tuple[Any, float]:
    """What a record says of captions, and its watermark."""
    try:
        values = metadata.record(content, "")
    except Rejected as rejected:
        return rejected.reason, float("nan")
    kind = tuple((n, _reason(metadata.captions, v)) for n, v in values.items() if v is not None)
    return kind, metadata.watermark(values)


def _reason(read: Any, value: Any) -> str:
    """Why something cannot be read; "": it can."""
    try:
        read(value, "")
    except Rejected as rejected:
        return rejected.reason
    return ""
