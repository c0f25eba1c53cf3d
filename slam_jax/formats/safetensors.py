"""Safetensors files: flat dicts of arrays, nested params, and big files read one array at a time.

A file is the length of its header (8 bytes, little-endian), the header (JSON: key -> dtype, shape
and offsets), and the arrays' bytes. A sharded set is several of them and an index, JSON whose
"weight_map" says which key is in which file.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # which also teaches numpy, hence safetensors, bfloat16
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from slam_jax.base.errors import InputError
from slam_jax.base.files import unfinished
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
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
FINGERPRINT_BLOCKS, FINGERPRINT_BYTES = 16, 4096  # of an array, spread over it


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a flat dict of arrays as a safetensors file, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    with unfinished(path) as beside:
        beside.touch()
        mode = beside.stat().st_mode
        arrays = {key: np.asarray(array, order="C") for key, array in arrays.items()}
        try:
            save_file(arrays, beside, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, or no permission
            raise OSError(str(error)) from error
        beside.chmod(mode)  # safetensors would leave it to its owner alone


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a safetensors file as a flat dict of arrays.

    Raises:
        ValueError: the file is missing, truncated or not safetensors.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read {os.fspath(path)} as safetensors: {error}") from error


def save_params(path: str | os.PathLike, params: Params) -> None:
    """Writes nested params as a safetensors file, keys joined by dots, whole or not at all."""
    save_arrays(path, jax.device_get(flatten(params)))


def load_params(path: str | os.PathLike) -> Params:
    """Reads what `save_params` wrote.

    Raises:
        ValueError: the file is missing, truncated or not safetensors.
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

    Nothing is kept and nothing is memory-mapped, so only what the caller holds takes memory.
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


def _read_index(path: Path) -> dict[str, _Entry]:
    """Entries of all files of a sharded set."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no index of safetensors files; download it again") from error
    entries = {}
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{path}: names the file {name!r}, expected one beside the index")
        shard = path.with_name(name)
        if not shard.is_file():
            raise InputError(f"{shard}: missing, but {path.name} lists it; download it again")
        found = _read_header(shard)
        listed = {key for key, file in weight_map.items() if file == name}
        if wrong := sorted(listed ^ found.keys()):
            where = "the index only" if wrong[0] in listed else "the file only"
            raise InputError(
                f"{shard}: {len(wrong)} keys differ from those that {path.name} lists, first "
                f"{wrong[0]} ({where}); download both again"
            )
        entries |= found
    return entries


def _read_header(path: Path) -> dict[str, _Entry]:
    """Entries of one file, whose size is checked against them."""
    try:
        file_size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if file_size < 8 or length > MAX_HEADER_BYTES:
                raise InputError(f"{path}: not a safetensors file; download or convert it again")
            header = file.read(length)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(header) < length:
        raise InputError(f"{path}: truncated at {file_size} bytes; download it again")
    try:
        content = json.loads(header)
        content.pop("__metadata__", None)
        entries = {key: _entry(path, 8 + length, **value) for key, value in content.items()}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}: not a safetensors file ({why}); download it again") from error
    expected = max((entry.start + entry.size for entry in entries.values()), default=8 + length)
    if file_size < expected:
        raise InputError(f"{path}: truncated, {file_size} of {expected} bytes; download it again")
    if file_size > expected:
        raise InputError(f"{path}: {file_size} bytes, expected {expected}; download it again")
    return entries


def _entry(path: Path, base: int, dtype: str, shape: list[int], data_offsets: list[int]) -> _Entry:
    """One entry of a header; `base` is where the arrays begin."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype}, supported: {', '.join(DTYPES)}")
    start, end = data_offsets
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    if not 0 <= start <= end or end - start != math.prod(shape) * itemsize:
        raise ValueError(f"{dtype} {shape} cannot be bytes {start} to {end}")
    return _Entry(path, np.dtype(DTYPES[dtype]), tuple(shape), base + start, end - start)
