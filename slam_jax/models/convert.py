"""Torch state dicts <-> nested params.

The only file that knows foreign names. Module paths are the same on both sides, so a key differs
in its last word and its layout only:

    here                       torch
    kernel [H, W, in, out]     weight [out, in, H, W]
    kernel [in, out]           weight [out, in]
    scale [C]                  weight [C]
    embedding [V, D]           weight [V, D]
    bias [C]                   bias [C]
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from slam_jax.models.functional import flatten, unflatten

Params = dict[str, Any]


def _torch_key(path: str) -> str:
    """The torch key of a dotted path: the last word becomes "weight", unless it is "bias"."""
    module, _, name = path.rpartition(".")
    return path if name == "bias" else f"{module}.weight"


def _transposition(path: str, ndim: int, to_torch: bool) -> tuple[int, ...]:
    """Order of axes that turns an array here into torch's, or back."""
    if path.endswith(".kernel") and ndim == 4:
        return (3, 2, 0, 1) if to_torch else (2, 3, 1, 0)
    if path.endswith(".kernel"):
        return (1, 0)
    return tuple(range(ndim))


def from_torch(
    state_dict: Mapping[str, np.ndarray], abstract_params: Params
) -> tuple[Params, list[str], list[str]]:
    """Params from a torch state dict.

    Args:
        state_dict: torch key -> array, in any floating dtype.
        abstract_params: the tree to fill; leaves have `.shape` and `.dtype`.

    Returns:
        The params found (in the dtypes of `abstract_params`), the torch keys missing from
        `state_dict` (absent from the params too), and those in it that have no place.

    Raises:
        ValueError: an array of the wrong shape.
    """
    found, missing, extra = {}, [], set(state_dict)
    for path, leaf in flatten(abstract_params).items():
        key = _torch_key(path)
        if key not in state_dict:
            missing.append(key)
            continue
        extra.remove(key)
        array = np.asarray(state_dict[key])
        axes = _transposition(path, len(leaf.shape), to_torch=True)
        shape = tuple(leaf.shape[axis] for axis in axes)
        if array.shape != shape:
            raise ValueError(f"{key} has shape {array.shape}, expected {shape}")
        array = array.transpose(_transposition(path, array.ndim, to_torch=False))
        found[path] = np.ascontiguousarray(array, leaf.dtype)
    return unflatten(found), missing, sorted(extra)


def to_torch(params: Params) -> dict[str, np.ndarray]:
    """The torch state dict of params, same dtypes, contiguous."""
    state_dict = {}
    for path, leaf in flatten(params).items():
        array = np.asarray(jax.device_get(leaf))
        axes = _transposition(path, array.ndim, to_torch=True)
        state_dict[_torch_key(path)] = np.ascontiguousarray(array.transpose(axes))
    return state_dict
