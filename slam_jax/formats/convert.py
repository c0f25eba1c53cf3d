"""Torch state dicts <-> nested params.

The only file that knows foreign names. Module paths are the same on both sides, so a key differs
in its last word and its layout only:

    here                       torch
    kernel [H, W, in, out]     weight [out, in, H, W]
    kernel [in, out]           weight [out, in]
    scale [C]                  weight [C]
    embedding [V, D]           weight [V, D]
    bias [C]                   bias [C]

Published files come with other spellings, which are read and never written: the VAE of SD 1.x has
older names in its attention, at times with 1x1 convolutions [out, in, 1, 1] where linear layers are
now; and a CLIP text encoder may lack the prefix "text_model.".
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from slam_jax.models.functional import flatten, unflatten

Params = dict[str, Any]

OLD_ATTENTION_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
CLIP_PREFIX = "text_model."
# Not weights: 0, 1, 2, ... as an array, in files of older transformers.
NOT_WEIGHTS = {"text_model.embeddings.position_ids", "embeddings.position_ids"}


def _torch_key(path: str) -> str:
    """The torch key of a dotted path: the last word becomes "weight", unless it is "bias"."""
    module, _, name = path.rpartition(".")
    return path if name == "bias" else f"{module}.weight"


def _old_attention_key(key: str) -> str | None:
    """What older files call a weight of an attention layer; None for any other weight."""
    module, _, name = key.rpartition(".")
    for new, old in OLD_ATTENTION_NAMES.items():
        if module.endswith(f".{new}"):
            return f"{module.removesuffix(new)}{old}.{name}"
    return None


def _transposition(path: str, ndim: int, to_torch: bool) -> tuple[int, ...]:
    """Order of axes that turns an array here into torch's, or back."""
    if path.endswith(".kernel") and ndim == 4:
        return (3, 2, 0, 1) if to_torch else (2, 3, 1, 0)
    if path.endswith(".kernel"):
        return (1, 0)
    return tuple(range(ndim))


def _transposed(array: np.ndarray, axes: tuple[int, ...], dtype: Any) -> np.ndarray:
    """`array.transpose(axes)`, contiguous and of `dtype`, in one pass.

    Where torch's first axis (outputs) becomes the last, 128 outputs at a time: their cache lines
    are read once, which is up to twice as fast as all at once.
    """
    if axes[-1] != 0 or array.ndim == 1:
        return np.ascontiguousarray(array.transpose(axes), dtype)
    result = np.empty([array.shape[axis] for axis in axes], dtype)
    for start in range(0, len(array), 128):
        block = slice(start, start + 128)
        result[..., block] = array[block].transpose(axes)
    return result


def from_torch(
    state_dict: Mapping[str, np.ndarray],
    abstract_params: Params,
    place: Callable[[np.ndarray], Any] = lambda array: array,
) -> tuple[Params, list[str], list[str]]:
    """Params from a torch state dict, whose items are each read once, one after the other.

    Args:
        state_dict: torch key -> array, in any floating dtype.
        abstract_params: the tree to fill; leaves have `.shape` and `.dtype`.
        place: what to do with a converted array before the next one is read, such as putting it
            on a device: no second copy of all weights is ever held.

    Returns:
        The params found (in the dtypes of `abstract_params`), the torch keys missing from
        `state_dict` (absent from the params too), and those in it that have no place.

    Raises:
        ValueError: an array of the wrong shape.
    """
    found, missing, extra = {}, [], set(state_dict) - NOT_WEIGHTS
    for path, leaf in flatten(abstract_params).items():
        key = _torch_key(path)
        old_key = _old_attention_key(key)
        spellings = (key, old_key, key.removeprefix(CLIP_PREFIX))
        spelled = next((name for name in spellings if name in extra), None)
        if spelled is None:
            missing.append(key)
            continue
        extra.remove(spelled)
        array = np.asarray(state_dict[spelled])
        if old_key is not None and array.shape[2:] == (1, 1):
            array = array[:, :, 0, 0]
        axes = _transposition(path, len(leaf.shape), to_torch=True)
        shape = tuple(leaf.shape[axis] for axis in axes)
        if array.shape != shape:
            raise ValueError(f"{spelled} has shape {array.shape}, expected {shape}")
        axes = _transposition(path, array.ndim, to_torch=False)
        found[path] = place(_transposed(array, axes, leaf.dtype))
    return unflatten(found), missing, sorted(extra)


def to_torch(params: Params) -> dict[str, np.ndarray]:
    """The torch state dict of params, same dtypes, contiguous."""
    state_dict = {}
    for path, leaf in flatten(params).items():
        array = np.asarray(jax.device_get(leaf))
        axes = _transposition(path, array.ndim, to_torch=True)
        state_dict[_torch_key(path)] = np.ascontiguousarray(array.transpose(axes))
    return state_dict
