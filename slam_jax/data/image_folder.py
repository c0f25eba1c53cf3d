"""Image files in a folder, with captions in metadata.jsonl or in text files beside them."""

import errno
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from slam_jax.base.errors import InputError
from slam_jax.data import images, metadata
from slam_jax.data.examples import Example, Filters
from slam_jax.data.metadata import printable
from slam_jax.data.rejects import Rejected, Rejects

METADATA = "metadata.jsonl"
CAPTION_KEYS = ("text", "caption")
THREADS = 16  # that wait for the disk
CHUNK = 256  # files a thread looks at in one go


class Found(NamedTuple):
    """A usable image.

    Attributes:
      path: relative to the folder.
      captions: one or more.
      shape: height and width.
      version: size of the file in bytes, and when it changed.
      crc: of the file's beginning.
    """

    path: str
    captions: tuple[str, ...]
    shape: tuple[int, int]
    version: tuple[int, int]
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
            look = _Look(folder.resolve(strict=True), filters, keys, self.rejects)
            found = look.all()
        except OSError as error:
            where = error.filename or folder
            raise InputError(f"{where}: cannot be read: {error.strerror or error}") from error
        if not found:
            reasons = "; ".join(self.rejects.lines()) or "no images with captions are in it"
            raise InputError(f"{folder}: no example can be used: {reasons}")
        self._found = found
        self.sizes = np.array([one.shape for one in found], np.int32)
        facts = [(one.path, one.version[0], one.crc, one.captions) for one in found]
        self.identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> Example:
        found = self._found[index]
        path = self._folder / found.path
        try:
            with path.open("rb") as file:
                version, content = _version(os.fstat(file.fileno())), file.read()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        if version != found.version or len(content) != version[0]:
            raise InputError(f"{path}: has changed since the folder was opened; start again")
        return Example(printable(found.path), content, found.captions)


@dataclass
class _Look:
    """Looks through a folder.

    Attributes:
      folder: which, resolved.
      filters: which examples are wanted.
      keys: of captions in metadata.jsonl.
      rejects: what is passed over is added to them.
    """

    folder: Path
    filters: Filters
    keys: tuple[str, ...]
    rejects: Rejects

    def all(self) -> list[Found]:
        """All usable images, sorted by path."""
        paths = sorted(self._paths())
        there = set(paths)
        records: dict[str, dict[str, Any]] = {}
        for path in paths:
            if PurePosixPath(path).name == METADATA:
                self._read_records(path, there, records)
        wanted = self._images(paths, there, records)
        chunks = [wanted[at : at + CHUNK] for at in range(0, len(wanted), CHUNK)]
        with (
            ThreadPoolExecutor(THREADS) as pool,
            tqdm(desc="looking at images", total=len(wanted), unit="image", delay=2) as bar,
        ):
            found = []
            looked = pool.map(lambda chunk: [self._look(p, records, there) for p in chunk], chunks)
            for results in looked:
                for result in results:
                    if isinstance(result, Found):
                        found.append(result)
                    else:
                        self.rejects.add(result)
                bar.update(len(results))
        return found

    def _paths(self) -> Iterator[str]:
        """Relative paths of all files, but for hidden ones."""

        def refuse(error: OSError) -> None:
            raise error

        for folder, folders, files in os.walk(self.folder, onerror=refuse):
            here = Path(folder).relative_to(self.folder).as_posix()
            folders[:] = sorted(n for n in folders if not n.startswith(".") and n != "__MACOSX")
            for name in folders:  # a link to another folder is not followed: it may lead around
                if not Path(folder, name).resolve().is_relative_to(self.folder):
                    where = PurePosixPath(here, name).as_posix()
                    self.rejects.add(Rejected("link to a folder elsewhere", printable(where)))
            yield from (
                name if here == "." else f"{here}/{name}"
                for name in files
                if not name.startswith(".")
            )

    def _read_records(self, path: str, there: set[str], records: dict[str, dict]) -> None:
        """Adds the records of a metadata.jsonl, by the paths of their images."""
        try:
            self._stat(path)
        except Rejected as rejected:
            self.rejects.add(rejected)
            return
        with (self.folder / path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    image, record = _read_record(line, path, number)
                    if image in records:
                        raise Rejected("duplicate key", printable(image))
                    if image not in there:
                        raise Rejected("no image for a caption", printable(image))
                    records[image] = record
                except Rejected as rejected:
                    self.rejects.add(rejected)

    def _images(self, paths: list[str], there: set[str], records: dict[str, dict]) -> list[str]:
        """Which paths are examples: those with a record, and one image for each text."""
        texts: dict[str, list[str]] = {path: [] for path in paths if path.lower().endswith(".txt")}
        wanted = []
        for path in paths:
            if path in records:
                wanted.append(path)
                texts.pop(_text_of(path), None)
            elif path.lower().endswith(tuple(f".{extension}" for extension in images.EXTENSIONS)):
                text = _text_of(path)
                if text in there:
                    texts.setdefault(text, []).append(path)
                else:
                    wanted.append(path)
        for text, of in texts.items():
            if not of:
                self.rejects.add(Rejected("no image for a caption", printable(text)))
            elif len(of) > 1:
                self.rejects.add(Rejected("several images for one key", printable(of[0])))
            else:
                wanted += of
        return sorted(wanted)

    def _look(self, path: str, records: dict[str, dict], there: set[str]) -> Found | Rejected:
        name, record = printable(path), records.get(path, {})
        try:
            status = self._stat(path)
            with (self.folder / path).open("rb") as file:

                def read(size: int) -> bytes:
                    file.seek(0)
                    return file.read(size)

                crc = zlib.crc32(read(min(status.st_size, metadata.BEGINNING)))
                shape = metadata.image_size(read, status.st_size, name)
            captions = self._captions(path, record, there)
            self.filters.check(name, *shape, metadata.watermark(record))
        except Rejected as rejected:
            return rejected
        return Found(path, captions, shape, _version(status), crc)

    def _captions(self, path: str, record: dict[str, Any], there: set[str]) -> tuple[str, ...]:
        value = next((record[key] for key in self.keys if record.get(key) is not None), None)
        text = _text_of(path)
        if value is None and text in there:
            if self._stat(text).st_size > metadata.LARGEST:
                raise Rejected("file above 256 MB", printable(path))
            return metadata.text_captions((self.folder / text).read_bytes(), printable(path))
        return metadata.captions(value, printable(path))

    def _stat(self, path: str) -> os.stat_result:
        """Of a file.

        Raises:
          Rejected: a link to nothing, or something that would never end, as a pipe.
        """
        try:
            status = (self.folder / path).stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            raise Rejected("link to nothing", printable(path)) from error
        if not stat.S_ISREG(status.st_mode):
            raise Rejected("not a file", printable(path))
        return status


def _read_record(line: bytes, path: str, number: int) -> tuple[str, dict[str, Any]]:
    """The path of an image, and its record, from a line of the metadata.jsonl at `path`."""
    where = f"{printable(path)}:{number}"
    record = metadata.record(line, where)
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        raise Rejected("no file_name", where)
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise Rejected("unsafe name", where)
    return (PurePosixPath(path).parent / relative).as_posix(), record


def _text_of(path: str) -> str:
    return PurePosixPath(path).with_suffix(".txt").as_posix()


def _version(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
