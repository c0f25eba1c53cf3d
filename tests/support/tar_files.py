"""Tars and image files for tests, made in memory."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def image(number: int, height: int = 24, width: int = 32, kind: str = "PNG") -> bytes:
    """A picture of which the number decides the colour."""
    pixels = np.full((height, width, 3), (number * 40 % 256, number * 7 % 256, 99), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def member(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a tar.

    Args:
      fields: other attributes of its TarInfo, such as type.
    """
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar(members: dict[str, bytes] | list, kind: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of names and contents, or of what `member` returns."""
    pairs = [member(*pair) for pair in members.items()] if isinstance(members, dict) else members
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind, errors="surrogateescape") as archive:
        for info, content in pairs:
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def good(count: int, begin: int = 0) -> dict[str, bytes]:
    """Members that are `count` examples, each with caption "caption N"."""
    members = {}
    for number in range(begin, begin + count):
        members[f"{number:05d}.png"] = image(number)
        members[f"{number:05d}.txt"] = f"caption {number}".encode()
    return members


def write(folder: Path, shards: dict[str, bytes]) -> Path:
    """Writes files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in shards.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
