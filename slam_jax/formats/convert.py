"""Torch state dicts <-> nested params.

The only file that knows foreign names. Module paths are the same on both sides, so a key differs
in its last word and its layout only:

    here                       torch
    kernel [H, W, in, out]     weight [out, in, H, W]
    kernel [in, out]           weight [out, in]
    scale [C]                  weight [C]
    embedding [V, D]           weight [V, D]

Any other array has the same name and layout, `bias` and `running_mean` for example.

Published files come with other spellings, which are read and never written: the VAE of SD 1.x has
older names in its attention, at times with 1x1 convolutions [out, in, 1, 1] where linear layers are
now; DINOv2 has other names in its attention than CLIP; a CLIP text encoder may lack the prefix
"text_model."; T5's embedding of tokens may have another name, or both; and Inception comes with
TensorFlow's names (`from_tensorflow_names`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from slam_jax.models.functional import flatten, unflatten

Params = dict[str, Any]

OTHER_ATTENTION_NAMES = {
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out.0": "proj_attn",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.out_proj": "attention.output.dense",
}
CLIP_PREFIX = "text_model."
SAME = {"shared.weight": "encoder.embed_tokens.weight"}  # one array under two names, in T5
# Not weights: 0, 1, 2, ... as an array, in files of older transformers; and a count of steps.
NOT_WEIGHTS = (
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
    "embeddings.position_ids",
)
STEPS = ".num_batches_tracked"

# Inception's convolutions by the names of pytorch-fid and TensorFlow, block by block.
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
BRANCHES = {
    ("5b", "5c", "5d"): (
        "1x1 5x5_1 5x5_2 3x3dbl_1 3x3dbl_2 3x3dbl_3 _pool",
        "conv tower.conv tower.conv_1 tower_1.conv tower_1.conv_1 tower_1.conv_2 tower_2.conv",
    ),
    ("6a",): (
        "3x3 3x3dbl_1 3x3dbl_2 3x3dbl_3",
        "conv tower.conv tower.conv_1 tower.conv_2",
    ),
    ("6b", "6c", "6d", "6e"): (
        "1x1 7x7_1 7x7_2 7x7_3 7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5 _pool",
        "conv tower.conv tower.conv_1 tower.conv_2 tower_1.conv tower_1.conv_1 tower_1.conv_2 "
        "tower_1.conv_3 tower_1.conv_4 tower_2.conv",
    ),
    ("7a",): (
        "3x3_1 3x3_2 7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4",
        "tower.conv tower.conv_1 tower_1.conv tower_1.conv_1 tower_1.conv_2 tower_1.conv_3",
    ),
    ("7b", "7c"): (
        "1x1 3x3_1 3x3_2a 3x3_2b 3x3dbl_1 3x3dbl_2 3x3dbl_3a 3x3dbl_3b _pool",
        "conv tower_conv tower_mixed_conv tower_mixed_conv_1 tower_1_conv tower_1_conv_1 "
        "tower_1_mixed_conv tower_1_mixed_conv_1 tower_2_conv",
    ),
}
TENSORFLOW_LEAVES = {
    "weight": "conv.weight",
    "beta": "bn.bias",
    "mean": "bn.running_mean",
    "var": "bn.running_var",
}


def _torch_key(path: str) -> str:
    """The torch key of a dotted path: some last words become "weight"."""
    module, _, name = path.rpartition(".")
    return f"{module}.weight" if name in ("kernel", "scale", "embedding") else path


def _other_attention_key(key: str) -> str | None:
    """What some files call a weight of an attention layer; None for any other weight."""
    module, _, name = key.rpartition(".")
    for new, other in OTHER_ATTENTION_NAMES.items():
        if module.endswith(f".{new}"):
            return f"{module.removesuffix(new)}{other}.{name}"
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
    found, missing = {}, []
    extra = {key for key in state_dict if key not in NOT_WEIGHTS and not key.endswith(STEPS)}
    for path, leaf in flatten(abstract_params).items():
        key = _torch_key(path)
        other_key = _other_attention_key(key)
        spellings = (key, other_key, key.removeprefix(CLIP_PREFIX), SAME.get(key))
        spelled = next((name for name in spellings if name in extra), None)
        if spelled is None:
            missing.append(key)
            continue
        extra -= {spelled, SAME.get(key)}
        array = np.asarray(state_dict[spelled])
        if other_key is not None and array.shape[2:] == (1, 1):
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


def from_tensorflow_names(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inception's state dict with pytorch-fid's names, from one with those of TensorFlow's graph.

    NVIDIA's TorchScript of it, which clean-fid uses, has such a one: "layers.mixed.tower.conv.var".
    It has no scales of BatchNorm, which are one. A name that is none of these stays as it is.
    """
    modules = _tensorflow_modules()
    renamed = {}
    for key, array in state_dict.items():
        module, _, name = key.rpartition(".")
        if module == "output":
            renamed[f"fc.{name}"] = array
        elif module in modules and name in TENSORFLOW_LEAVES:
            renamed[f"{modules[module]}.{TENSORFLOW_LEAVES[name]}"] = array
            if name == "beta":
                renamed[f"{modules[module]}.bn.weight"] = np.ones_like(array)
        else:
            renamed[key] = array
    return renamed


def _tensorflow_modules() -> dict[str, str]:
    """TensorFlow's name of each convolution -> pytorch-fid's."""

    def numbered(name, index):
        return f"layers.{name}_{index}" if index else f"layers.{name}"

    modules = {numbered("conv", index): name for index, name in enumerate(STEM)}
    for blocks, (ours, theirs) in BRANCHES.items():
        for block in blocks:
            where = numbered("mixed", MIXED.index(block))
            for branch, name in zip(ours.split(), theirs.split(), strict=True):
                modules[f"{where}.{name}"] = f"Mixed_{block}.branch{branch}"
    return modules
