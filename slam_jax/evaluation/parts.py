"""Features of many pictures in a folder, a part at a time: what a kill loses is one part."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from slam_jax.base.errors import InputError
from slam_jax.base.files import is_empty, unfinished
from slam_jax.base.json_file import read_json, write_json
from slam_jax.base.tree import differences
from slam_jax.features.extract import Features
from slam_jax.features.rows import Rows
from slam_jax.formats.safetensors import open_arrays, save_arrays
from slam_jax.parallel.processes import is_main, wait

PART = 256  # pictures; whatever the devices, so that any of them can go on
# Beside the features: small pictures themselves, and of real ones the SHA-256 of their pixels.
IMAGES, DIGESTS = "images", "digests"


PROTOCOL_FILE = "protocol.json"


def claim(protocol: dict[str, Any], out: Path) -> None:
    """Makes a folder for what is measured by a protocol, or finds the same measurement in it.

    Raises:
      InputError: it holds another one, or something else, or cannot be written.
    """
    record = out / PROTOCOL_FILE
    known = json.loads(json.dumps(protocol))
    if record.exists():
        for key, there, now in differences(read_json(record, "choose another folder"), known):
            raise InputError(
                f"{out}: holds another measurement: {key} was {there!r} and is {now!r}; choose "
                "another folder"
            )
    elif out.exists() and not is_empty(out):
        raise InputError(f"{out}: holds no measurement, but is not empty; choose another folder")
    wait("the folder is looked at")
    if is_main() and not record.exists():
        write_json(record, protocol)
    wait("the folder is there")


@dataclass(frozen=True)
class Parts:
    """Features of one set of pictures.

    Attributes:
      folder: of the files.
      count: pictures.
      tars: folder for the pictures themselves; None: they are not kept.
    """

    folder: Path
    count: int
    tars: Path | None = None

    def path(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"{number:05d}.safetensors"

    def tar(self, number: int) -> Path | None:
        """Where the pictures of a part are kept."""
        return self.tars and self.tars / f"{number:05d}.tar"

    def missing(self) -> Iterator[tuple[int, range]]:
        """(number, its pictures) of the parts that this process has to make still: it makes every
        so many-th."""
        for number, first in enumerate(range(0, self.count, PART)):
            mine = number % jax.process_count() == jax.process_index()
            files = [self.path(number), *filter(None, [self.tar(number)])]
            if mine and not all(file.exists() for file in files):
                yield number, range(first, min(first + PART, self.count))

    def write(self, number: int, arrays: Features) -> None:
        """Writes a part whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_arrays(self.path(number), arrays)

    def names(self) -> list[str]:
        """What is known of each picture: names of networks, and IMAGES where they are small."""
        return sorted(open_arrays(self.path(0)))

    def rows(self, name: str) -> Rows:
        """All parts' arrays of one name, one after the other."""
        paths = [self.path(number) for number in range(-(-self.count // PART))]
        return Rows(lambda: (open_arrays(path)[name] for path in paths))


def save_pictures(
    path: Path, first: int, images: Sequence[UInt8[np.ndarray, "H W C"]], texts: Sequence[str]
) -> None:
    """Writes PNGs, each with its prompt in a .txt beside it, as a tar: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as beside, tarfile.open(beside, "w") as tar:
        for index, (image, text) in enumerate(zip(images, texts, strict=True), first):
            png = io.BytesIO()
            rgb = np.broadcast_to(image, (*image.shape[:2], 3))
            Image.fromarray(np.ascontiguousarray(rgb)).save(png, format="PNG")
            for ending, content in (("png", png.getvalue()), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{index:06d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
