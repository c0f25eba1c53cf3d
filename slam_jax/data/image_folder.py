"""Image files in a folder, with captions in metadata.jsonl or in text files beside them."""

import hashlib
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.data import images, metadata
from slam_jax.data.examples import Example, Filters
from slam_jax.data.metadata import printable
from slam_jax.data.rejects import Rejected, Rejects, all_usable

METADATA = "metadata.jsonl"
CAPTION_KEYS = ("text", "caption")
SUFFIXES = tuple(f".{extension}" for extension in images.EXTENSIONS)


class Found(NamedTuple):
    """A usable image.

    Attributes:
      path: relative to the folder.
      captions: one or more.
      shape: height and width.
      size: of the file, in bytes.
      crc: of its beginning.
    """

    path: str
    captions: tuple[str, ...]
    shape: tuple[int, int]
    size: int
    crc: int


class ImageFolder:
    """Examples in a folder: images anywhere below it, each with a caption in the metadata.jsonl of
    a folder above it ({"file_name": ..., "text": ...} on each line), or in a .txt of its name.

    Args:
      folder: which.
      filters: which examples are wanted.
      caption_key: where in metadata.jsonl the captions are; "": in "text" or "caption".

    Attributes:
      sizes: height and width of each image, int32 [N, 2].

    Raises:
      InputError: there is no such folder, it cannot be read, or no example can be used.
    """

    def __init__(
        self,
        folder: Path,
        filters: Filters = Filters(),  # noqa: B008 - it is frozen
        caption_key: str = "",
    ):
        self.name, self.rejects, self._folder = str(folder), Rejects(), folder
        keys = (caption_key,) if caption_key else CAPTION_KEYS
        try:
            self._found = _Look(folder, filters, keys, self.rejects).all()
        except OSError as error:
            where = error.filename or folder
            raise InputError(f"{where}: cannot be read: {error.strerror or error}") from error
        if not self._found:
            reasons = "; ".join(self.rejects.lines()) or "no images with captions are in it"
            raise InputError(f"{folder}: no example can be used: {reasons}")
        self.sizes = np.array([one.shape for one in self._found], np.int32)
        self.identity = hashlib.sha256(json.dumps(self._found).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> Example:
        found = self._found[index]
        path = self._folder / found.path
        try:
            return Example(printable(found.path), path.read_bytes(), found.captions)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


@dataclass
class _Look:
    """Looks through a folder.

    Attributes:
      folder: which.
      filters: which examples are wanted.
      keys: of captions in metadata.jsonl.
      rejects: what is passed over is added to them.
      records: the lines of every metadata.jsonl, by the paths of their images.
    """

    folder: Path
    filters: Filters
    keys: tuple[str, ...]
    rejects: Rejects
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def all(self) -> list[Found]:
        """All usable images, sorted by path."""
        there = set(self._paths())
        for path in sorted(there):
            if PurePosixPath(path).name == METADATA:
                self._read_records(path, there)
        return all_usable(self._look, self._images(there), self.rejects)

    def _paths(self) -> Iterator[str]:
        """Relative paths of all files, but for hidden ones."""

        def refuse(error: OSError) -> None:
            raise error

        for folder, folders, files in os.walk(self.folder, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            here = PurePosixPath(Path(folder).relative_to(self.folder))
            for name in folders:  # which may lead around, and is not followed
                if Path(folder, name).is_symlink():
                    self.rejects.add(Rejected("link to a folder", printable(str(here / name))))
            yield from (str(here / name) for name in files if not name.startswith("."))

    def _read_records(self, path: str, there: set[str]) -> None:
        """Adds the records of a metadata.jsonl."""
        with (self.folder / path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{printable(path)}:{number}"
                try:
                    record = metadata.record(line, where)
                    name = record.get("file_name")
                    if not isinstance(name, str) or not name:
                        raise Rejected("no file_name", where)
                    image = str(PurePosixPath(path).parent / name)
                    if image in self.records:
                        raise Rejected("duplicate key", printable(image))
                    if image not in there:
                        raise Rejected("no image for a caption", printable(image))
                    self.records[image] = record
                except Rejected as rejected:
                    self.rejects.add(rejected)

    def _images(self, there: set[str]) -> list[tuple[str, str]]:
        """Paths of those with a record and of one for each text; and each one's text, or ""."""
        texts = {path for path in there if path.lower().endswith(".txt")}
        images_of = defaultdict(list)
        for path in sorted(there):
            if path in self.records or path.lower().endswith(SUFFIXES):
                images_of[str(PurePosixPath(path).with_suffix(".txt"))].append(path)
        for text in sorted(texts - images_of.keys()):
            self.rejects.add(Rejected("no image for a caption", printable(text)))
        wanted = []
        for text, paths in images_of.items():
            unrecorded = [path for path in paths if path not in self.records]
            if text in texts and len(unrecorded) > 1:
                self.rejects.add(Rejected("several images for one key", printable(unrecorded[0])))
                paths = [path for path in paths if path in self.records]
            wanted += ((path, text if text in texts else "") for path in paths)
        return sorted(wanted)

    def _look(self, paths: tuple[str, str]) -> Found:
        path, text = paths
        name, record = printable(path), self.records.get(path, {})
        try:
            with (self.folder / path).open("rb") as file:

                def read(size: int) -> bytes:
                    file.seek(0)
                    return file.read(size)

                size = os.fstat(file.fileno()).st_size
                crc = zlib.crc32(read(metadata.BEGINNING))
                shape = metadata.image_size(read, size, name)
            value = next((record[key] for key in self.keys if record.get(key) is not None), None)
            if value is None and text:
                value = (self.folder / text).read_bytes()
            captions = metadata.captions(value, name)
            self.filters.check(name, shape, metadata.watermark(record))
        except FileNotFoundError as error:
            raise Rejected("link to nothing", name) from error
        return Found(path, captions, shape, size, crc)
