"""Pictures in files, to compare with: a folder, a zip or tar shards of them, all or none.

A published result is measured with every picture of its reference. So one that cannot be read is
not passed over, as in training: the whole is refused.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from slam_jax.base.errors import InputError
from slam_jax.data import images, metadata
from slam_jax.data.examples import Example
from slam_jax.data.rejects import Rejected, Rejects, all_usable
from slam_jax.data.sources import SOURCES
from slam_jax.data.tar_shards import TarShards

SUFFIXES = tuple(f".{extension}" for extension in images.EXTENSIONS)
WHOLE = -1  # bytes to read


class Files(Protocol):
    """Image files that can be read in any order, from any thread."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Images:
    """Pictures in a fixed order: by the names of their files, or as shards have them.

    Args:
      files: theirs.

    Attributes:
      name: what the user called them.
      identity: changes when there are other files, as far as their names, sizes and times tell.
    """

    def __init__(self, files: Files):
        self._files, self.name, self.identity = files, files.name, files.identity

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Reads one, upright, in RGB, in the size that it has; from any thread.

        Raises:
          InputError: it cannot be read.
        """
        try:
            example = self._files[index]
            assert isinstance(example.image, bytes)  # of files
            return np.asarray(images.decode(example.image, example.name))
        except Rejected as rejected:
            raise InputError(
                f"{self.name}: {rejected.name}: {rejected.reason}; repair or remove it"
            ) from rejected


def open_images(source: str | Path) -> Images:
    """The pictures of a folder and of those in it, of a zip, or of tar shards.

    They are turned as EXIF says, which clean-fid does not do.

    Args:
      source: a folder, a .zip, or a pattern of tar shards of images with captions.

    Raises:
      InputError: there is no such thing, or some of its pictures cannot be used, as far as the
        beginnings of their files tell.
    """
    name = str(source)
    if SOURCES["tar"].matches(name) and not zipfile.is_zipfile(name):
        shards = TarShards(name)
        _refuse(name, shards.rejects, len(shards) + shards.rejects.total)
        return Images(shards)
    files, rejects = _listed(name), Rejects()
    rejects.update(files.rejects)
    all_usable(files.look, range(len(files)), rejects)
    _refuse(name, rejects, len(files))
    return Images(files)


def count_images(source: str | Path) -> int:
    """How many pictures a folder or a zip has, by their names alone.

    Raises:
      InputError: none, or it cannot be read.
    """
    return len(_listed(str(source)))


@dataclass(frozen=True)
class _Listed:
    """Files of a folder or a zip.

    Attributes:
      name: what the user called it.
      names: of the files.
      content: (name of a file, bytes from its beginning) -> them.
      stamp: name of a file -> what changes when its content does.
      rejects: what may hide pictures.
    """

    name: str
    names: list[str]
    content: Callable[[str, int], bytes]
    stamp: Callable[[str], str]
    rejects: Rejects = field(default_factory=Rejects)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        name = self.names[index]
        return Example(metadata.printable(name), self.content(name, WHOLE), ())

    @property
    def identity(self) -> str:
        """SHA-256 of all names and stamps."""
        lines = "\n".join(f"{name} {self.stamp(name)}" for name in self.names)
        return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()

    def look(self, index: int) -> None:
        """Raises Rejected where the beginning of a file tells that it cannot be used."""
        name = self.names[index]

        def read(size: int) -> bytes:
            return self.content(name, size if size <= metadata.BEGINNING else WHOLE)

        metadata.image_size(read, metadata.BEGINNING + 1, metadata.printable(name))


def _listed(name: str) -> _Listed:
    try:
        files = _of_zip(name) if zipfile.is_zipfile(name) else _of_folder(Path(name))
    except (OSError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"{name}: cannot be read ({why}); expected a folder of pictures, a .zip of them, or a "
            "pattern of tar shards such as 'data/{00000..00331}.tar'"
        ) from error
    if not len(files):
        raise InputError(f"{name}: no pictures in it; expected files such as 000139.jpg")
    return files


def _of_folder(folder: Path) -> _Listed:
    rejects, names = Rejects(), []

    def refuse(error: OSError) -> None:
        raise error

    for inner, folders, files in os.walk(folder, onerror=refuse):
        here = PurePosixPath(Path(inner).relative_to(folder))
        for name in folders:  # which may lead around, and is not followed
            if Path(inner, name).is_symlink():
                rejects.add(Rejected("link to a folder", metadata.printable(str(here / name))))
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += (str(here / name) for name in files)

    def content(name: str, size: int) -> bytes:
        try:
            with (folder / name).open("rb") as file:
                return file.read(size)
        except OSError as error:
            raise InputError(f"{folder / name}: cannot be read: {error.strerror}") from error

    def stamp(name: str) -> str:
        found = (folder / name).stat()
        return f"{found.st_size} {found.st_mtime_ns}"

    return _Listed(str(folder), sorted(_pictures(names)), content, stamp, rejects)


def _of_zip(name: str) -> _Listed:
    archive = zipfile.ZipFile(name)  # noqa: SIM115 - it is read from as long as it is used

    def content(member: str, size: int) -> bytes:
        try:
            with archive.open(member) as file:
                return file.read(size)
        # Whatever its decompressors say of damage.
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise Rejected("damaged in the zip", metadata.printable(member)) from error

    def stamp(member: str) -> str:
        return str(archive.getinfo(member).CRC)

    return _Listed(name, sorted(_pictures(archive.namelist())), content, stamp)


def _pictures(names: list[str]) -> Iterator[str]:
    """Those of picture files that are not hidden."""
    for name in names:
        hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
        if name.lower().endswith(SUFFIXES) and not hidden:
            yield name


def _refuse(name: str, rejects: Rejects, total: int) -> None:
    if rejects.total:
        raise InputError(
            f"{name}: {rejects.total} of {total} pictures cannot be used, where all have to be: "
            f"{'; '.join(rejects.lines())}; repair or remove them"
        )
