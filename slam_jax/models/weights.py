"""Safetensors files: flat dicts of arrays, and nested params."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401  (teaches numpy, hence safetensors, bfloat16)
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from slam_jax.models.functional import flatten, unflatten

Params = dict[str, Any]


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a flat dict of arrays as a safetensors file, whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        arrays = {key: np.asarray(array, order="C") for key, array in arrays.items()}
        save_file(arrays, temporary, metadata={"format": "pt"})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
