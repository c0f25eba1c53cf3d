"""Safetensors files: flat dicts of arrays, nested params, and big files read one array at a time.

A file is the length of its header (8 bytes, little-endian), the header (JSON: key -> dtype, shape
and offsets), and the arrays' bytes. A sharded set is several of them and an index, JSON whose
"weight_map" says which key is in which file.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # which also teaches numpy, hence safetensors, bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from slam_jax.base.errors import InputError
from slam_jax.base.files import unfinished
from slam_jax.base.json_file import read_json
from slam_jax.models.functional import flatten, unflatten

Params = dict[str, Any]

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
FINGERPRINT_BLOCKS, FINGERPRINT_BYTES = 16, 4096  # of an array, spread over it
AGAIN = "get it again"


def save_arrays(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a flat dict of arrays as a safetensors file, whole or not at all.

    Args:
        path: of the file.
        arrays: by key.
        metadata: texts for its header.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    with unfinished(path) as beside:
        beside.touch()
        mode = beside.stat().st_mode
        arrays = {key: np.asarray(array, order="C") for key, array in arrays.items()}
        try:
            save_file(arrays, beside, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:  # a full disk, or no permission
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else 0, str(error), str(path)) from error
        beside.chmod(mode)  # safetensors would leave it to its owner alone


def save_params(path: str | os.PathLike, params: Params) -> None:
    """Writes nested params as a safetensors file, keys joined by dots, whole or not at all."""
    save_arrays(path, jax.device_get(flatten(params)))


def load_params(path: str | os.PathLike) -> Params:
    """Reads what `save_params` wrote.

    Raises:
        InputError: the file is missing, truncated or not safetensors.
    """
    return unflatten(load_arrays(path))


@dataclass(frozen=True)
class _Entry:
    """Where an array is: its bytes are [start, start + size) of the file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self, start: int, size: int) -> np.ndarray:
        """Bytes [start, start + size) of the array, uint8 [size].

        Raises:
            InputError: the file cannot be read, or is shorter than it was when it was opened.
        """
        try:
            content = np.fromfile(self.path, np.uint8, size, offset=self.start + start)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from error
        if content.size != size:
            raise InputError(f"{self.path}: became shorter while it was being read; load it again")
        return content


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays of one or several safetensors files, by key; each is read when it is asked for.

    Nothing is kept and nothing is memory-mapped. The library maps a file as long as it is open:
    read whole it counts twice as memory (2.2 GB for 1 GB of weights, here 1.2 GB), and opened
    anew for each array it takes five times as long (10 s for 1,680 arrays of 1 GB, here 2 s).
    """

    def __init__(self, entries: Mapping[str, _Entry]):
        self._entries = dict(entries)

    def __getitem__(self, key: str) -> np.ndarray:
        entry = self._entries[key]
        return entry.read(0, entry.size).view(entry.dtype).reshape(entry.shape)

    def __contains__(self, key: object) -> bool:
        return key in self._entries  # Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape; no array is read."""
        return {key: entry.shape for key, entry in self._entries.items()}

    def fingerprint(self) -> str:
        """SHA-256 of keys, dtypes, shapes and 64 KiB of each array; the files do not matter."""
        digest = hashlib.sha256()
        for key, entry in sorted(self._entries.items()):
            digest.update(f"{key} {entry.dtype} {entry.shape}\n".encode())
            count = min(FINGERPRINT_BYTES, entry.size)
            starts = np.linspace(0, entry.size - count, FINGERPRINT_BLOCKS).astype(np.int64)
            for start in np.unique(starts):
                digest.update(entry.read(int(start), count).data)
        return digest.hexdigest()


def open_arrays(path: str | os.PathLike) -> LazyArrays:
    """The arrays of a safetensors file, or of all files of an index (`*.json`), not yet read.

    Raises:
        InputError: a file is missing, truncated or not safetensors, or index and files disagree;
            names the file.
    """
    path = Path(path)
    return LazyArrays(_read_index(path) if path.suffix == ".json" else _read_header(path))


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays that `open_arrays` would read one by one.

    Raises:
        InputError: a file is missing, truncated or not safetensors.
    """
    return dict(open_arrays(path))


def _read_index(path: Path) -> dict[str, _Entry]:
    """Entries of all files of a sharded set."""
    files = read_json(path, AGAIN).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise InputError(f"{path}: no index of safetensors files; {AGAIN}")
    entries = {}
    for name in sorted(set(files.values())):
        if Path(name).name != name:
            raise InputError(f"{path}: names the file {name!r}, expected one beside the index")
        entries |= _read_header(path.with_name(name))
    if wrong := sorted(entries.keys() ^ files.keys()):
        where = "the index only" if wrong[0] in files else "a file only"
        raise InputError(
            f"{path}: {len(wrong)} keys differ from those of its files, first {wrong[0]} "
            f"({where}); get index and files again"
        )
    return entries


def _read_header(path: Path) -> dict[str, _Entry]:
    """Entries of one file."""
    try:
        # The library compares the header with the file.
        with path.open("rb") as file, safe_open(path, framework="np"):
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
    except SafetensorError as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}: truncated or no safetensors file ({why}); {AGAIN}") from error
    header.pop("__metadata__", None)
    entries = {}
    for key, value in header.items():
        if value["dtype"] not in DTYPES:
            supported = ", ".join(DTYPES)
            raise InputError(f"{path}: {key} has dtype {value['dtype']}, supported: {supported}")
        dtype, (start, end) = np.dtype(DTYPES[value["dtype"]]), value["data_offsets"]
        entries[key] = _Entry(path, dtype, tuple(value["shape"]), 8 + length + start, end - start)
    return entries
