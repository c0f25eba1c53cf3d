"""Checksums of the files in a folder: whether they are what was written."""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from slam_jax.base.json_file import parse_json

FILE = "checksums.json"


def write(folder: Path) -> None:
    """Writes the CRC-32 of every file below a folder's folders into a file beside them."""
    paths = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        sums = pool.map(_crc32, paths)
    names = (str(path.relative_to(folder)) for path in paths)
    (folder / FILE).write_text(json.dumps(dict(zip(names, sums, strict=True)), indent=0))


def check(folder: Path, share: int = 0, shares: int = 1) -> None:
    """Compares the files with what `write` wrote.

    Args:
      folder: as for `write`.
      share: which part of the files, of `shares`.
      shares: how many processes check a part each.

    Raises:
      OSError: a file is missing or cannot be read.
      ValueError: a file has changed.
    """
    sums = parse_json((folder / FILE).read_text())
    names = sorted(sums)[share::shares]
    with ThreadPoolExecutor() as pool:
        for name, found in zip(names, pool.map(_crc32, map(folder.joinpath, names)), strict=True):
            if found != sums[name]:
                raise ValueError(f"{name} has changed since it was written")


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
