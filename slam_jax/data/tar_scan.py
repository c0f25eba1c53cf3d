"""What is where in a tar shard: found in one pass, with Python's tarfile.

Members of one example have one key, as webdataset groups them: the name up to the first dot of its
last part. They need not be neighbours.
"""

import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np

from slam_jax.data import images, metadata
from slam_jax.data.rejects import Rejected, Rejects

SUFFIXES = {
    **dict.fromkeys(images.EXTENSIONS, "image"),
    **{"txt": "text", "caption": "caption", "json": "record"},
}
FIELDS = [
    ("image", "<i8", 2),  # offset in the shard and size, in bytes
    ("caption", "<i8", 2),
    ("in_record", "?"),  # the caption is in JSON
    ("shape", "<i4", 2),  # height and width
    ("watermark", "<f8"),  # its probability; NaN: not known
    ("crc", "<u4"),  # of the image's beginning, the caption and the record
]
# What tarfile raises for damaged headers; errors of the disk or the net are others.
DAMAGE = (tarfile.TarError, ValueError)
TEXT_FIRST, RECORD_FIRST = ("text", "caption", "record"), ("record", "text", "caption")
Read = Callable[[int], bytes]  # gives that many bytes from a member's beginning


class Index(NamedTuple):
    """Facts about a shard.

    Attributes:
      rows: one for each example that can be used, [N] of FIELDS and its "key" in UTF-8.
      rejects: of the others.
      problem: of the shard itself; "": none.
    """

    rows: np.ndarray
    rejects: Rejects
    problem: str


def scan(file: BinaryIO, size: int, name: str, caption_key: str) -> Index:
    """Indexes a shard.

    Args:
      file: the shard.
      size: bytes of it.
      name: of it, for messages.
      caption_key: where captions are in JSON, which then come before those in a text; "": texts
        come before "caption".
    """
    found: dict[str, _Example] = {}
    try:
        for member in _members(file, size):
            stem, _, suffix = member.name.rpartition("/")[2].partition(".")
            # Without a stem: hidden files, such as macOS adds.
            if stem and suffix.lower() in SUFFIXES and member.isreg() and not member.issparse():
                example = found.setdefault(member.name[: -len(suffix) - 1], _Example())
                example.add(suffix.lower(), member, file, caption_key or "caption")
        problem = "" if found else "empty shard"
    except Rejected as rejected:
        problem = rejected.reason
    keys, rows, rejects = [], [], Rejects()
    for key, example in found.items():
        of_example = f"{name}/{metadata.printable(key)}"
        try:
            rows.append(example.row(of_example, RECORD_FIRST if caption_key else TEXT_FIRST))
            keys.append(key.encode(errors="surrogateescape"))
        except Rejected as rejected:
            rejects.add(rejected)
        if example.copies:
            rejects.add(Rejected("duplicate key", of_example), example.copies)
    if problem:
        rejects.add(Rejected(problem, name))
    table = np.empty(len(rows), [*FIELDS, ("key", f"S{max(map(len, keys), default=1)}")])
    if rows:
        for (column, *_), values in zip(FIELDS, zip(*rows, strict=True), strict=True):
            table[column] = values
        table["key"] = keys
    return Index(table, rejects, problem)


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """The members that are whole.

    Raises:
      Rejected: after them, the shard is not.
    """
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it closes nothing
    except DAMAGE as error:
        raise Rejected("shard that is not a tar" if size else "shard of zero bytes", "") from error
    while True:
        try:
            member = tar.next()
        except DAMAGE as error:
            cut = file.tell() >= size
            raise Rejected("truncated shard" if cut else "damaged shard", "") from error
        if member is None:
            break
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] # it would keep all
        if member.offset_data + member.size > size:
            raise Rejected("truncated shard", "")
        yield member
    # tarfile takes a damaged header, and a cut between members, for the end, which is all zeros.
    file.seek(tar.offset)
    rest = file.read(2 * tarfile.RECORDSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise Rejected("truncated shard", "")
    if any(rest):
        raise Rejected("damaged shard", "")


@dataclass
class _Example:
    """What is known of an example."""

    image: tuple[int, int] | None = None
    suffix: str = ""  # of the image
    shape: tuple[int, int] = (0, 0)
    watermark: float = float("nan")
    reason: str = ""  # why the image cannot be used
    # "text", "caption" or "record" -> offset, size, and why there is no caption.
    captions: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    crc: int = 0
    copies: int = 0  # how often the image came again

    def add(self, suffix: str, member: tarfile.TarInfo, file: BinaryIO, caption_key: str) -> None:
        """Looks at a member of the tar."""

        def read(size: int) -> bytes:
            file.seek(member.offset_data)
            return file.read(size)

        role = SUFFIXES[suffix]
        if role == "image":
            self._add_image(suffix, member, read)
        elif role not in self.captions:
            value, reason = read(member.size), ""
            self.crc = zlib.crc32(value, self.crc)
            try:
                if role == "record":
                    record = metadata.record(value, "")
                    self.watermark, value = metadata.watermark(record), record.get(caption_key)
                metadata.captions(value, "")
            except Rejected as rejected:
                reason = rejected.reason
            self.captions[role] = (member.offset_data, member.size, reason)

    def _add_image(self, suffix: str, member: tarfile.TarInfo, read: Read) -> None:
        if self.image:
            if suffix == self.suffix:
                self.copies += 1
            else:
                self.reason = "several images for one key"
            return
        self.image, self.suffix = (member.offset_data, member.size), suffix
        self.crc = zlib.crc32(read(min(member.size, metadata.BEGINNING)), self.crc)
        try:
            self.shape = metadata.image_size(read, member.size, "")
        except Rejected as rejected:
            self.reason = rejected.reason

    def row(self, name: str, order: tuple[str, ...]) -> tuple:
        """The FIELDS.

        Args:
          name: the example's.
          order: of the places of captions.

        Raises:
          Rejected: it cannot be used.
        """
        there = [(*self.captions[role], role) for role in order if role in self.captions]
        if self.image is None:
            raise Rejected("no image for a caption", name)
        if self.reason or not there:
            raise Rejected(self.reason or "no caption", name)
        # The first that has one.
        at, size, reason, role = min(there, key=lambda caption: caption[2] != "")
        if reason:
            raise Rejected(reason, name)
        return self.image, (at, size), role == "record", self.shape, self.watermark, self.crc
