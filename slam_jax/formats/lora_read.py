"""Reads LoRA files of any layout: kohya's, diffusers' of several years, peft's.

`lora_names` knows how they call a layer. A layer's change is (alpha / r) up down. alpha stands in
an array beside the two, in the file's header (`lora_adapter_metadata`, which diffusers writes), in
adapter_config.json beside the file (peft), or nowhere, which means r.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json
from slam_jax.formats import convert
from slam_jax.formats.lora_names import Names
from slam_jax.formats.safetensors import open_arrays
from slam_jax.models.functional import Params, flatten, unflatten
from slam_jax.models.lora import DOWN, UP, scaled

ENDS = {
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".alpha": "alpha",
}
# Other changes of weights, by what stands in their keys.
OTHERS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
    "lora_mid": "LoCon with CP decomposition",
}
# Of the keys and values of attention to the prompt, by the width of the texts.
BASES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}
METADATA = "lora_adapter_metadata"
PEFT_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"  # peft's


@dataclass(frozen=True)
class LoraFile:
    """What a file holds.

    Attributes:
      adapters: part of the model, such as "denoiser" -> adapters with alpha = r.
      unused: keys that no layer of the model has.
    """

    adapters: dict[str, Params]
    unused: tuple[str, ...] = ()


def read_lora(path: Path, params: Mapping[str, Params], layers_per_block: int) -> LoraFile:
    """Reads a file for a model.

    Args:
      path: of a safetensors file.
      params: arrays or shapes of the model's parts: "denoiser", "text_encoder", ...
      layers_per_block: of its UNet.

    Raises:
      InputError: the file cannot be read, is no LoRA, has an array that is not finite, or is for
        another base.
    """
    arrays, header = open_arrays(path), _header(path)
    if other := next(
        (name for key in arrays for part, name in OTHERS.items() if part in key), None
    ):
        raise InputError(f"{path}: a {other}, which is not supported; expected a LoRA")
    layers = {
        part: {p.removesuffix(".kernel") for p in flatten(tree) if p.endswith(".kernel")}
        for part, tree in params.items()
    }
    names, found, unused = Names(layers, layers_per_block), {}, []
    for key in arrays:
        end = next((end for end in ENDS if key.endswith(end)), None)
        if end is None:
            raise InputError(f"{path}: {key} is a kind of change that is not read; expected a LoRA")
        if (place := names.find(key.removesuffix(end))) is None:
            unused.append(key)
        elif (other := found.setdefault(place, {}).setdefault(ENDS[end], key)) != key:
            raise InputError(f"{path}: {key} and {other} mean the same; get the file again")
    if not found:
        first = next(iter(arrays), "no key at all")
        raise InputError(f"{path}: no LoRA of this model: {first} is none of its layers'")
    kernels = {part: flatten(tree) for part, tree in params.items()}
    adapters: dict[str, Params] = {}
    for (part, layer), keys in found.items():
        if missing := {DOWN, UP} - keys.keys():
            raise InputError(f"{path}: {layer} has no {missing.pop()}; get the file again")
        kernel = kernels[part][f"{layer}.kernel"]
        pair = {side: _as_layer(arrays[keys[side]], kernel.ndim) for side in (DOWN, UP)}
        _check_pair(path, keys, pair, kernel.shape, arrays)
        rank = len(pair[DOWN])
        if "alpha" in keys:
            alpha = _number(path, keys["alpha"], arrays[keys["alpha"]])
        else:
            alpha = header.alpha(part, layer, rank)
        state = {f"{side}.weight": array for side, array in pair.items()}
        shapes = {
            side: {"kernel": jax.ShapeDtypeStruct(_here(array.shape), np.float32)}
            for side, array in pair.items()
        }
        one, _, _ = convert.from_torch(state, shapes)
        for name, leaf in flatten(scaled(one, alpha / rank)).items():
            adapters.setdefault(part, {})[f"{layer}.{name}"] = leaf
    trees = {part: unflatten(flat) for part, flat in adapters.items()}
    return LoraFile(trees, tuple(sorted(unused)))


def _as_layer(array: np.ndarray, ndim: int) -> np.ndarray:
    """With the axes of the layer's kernel: some files have 1x1 convolutions for linear layers, or
    the reverse."""
    array = np.asarray(array, np.float32)
    if array.ndim == 4 and ndim == 2 and array.shape[2:] == (1, 1):
        return array[:, :, 0, 0]
    return array[:, :, None, None] if array.ndim == 2 and ndim == 4 else array


def _number(path: Path, name: str, value: Any) -> float:
    """A finite number.

    Raises:
      InputError: it is none.
    """
    try:
        number = float(np.asarray(value).item())
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise InputError(f"{path}: {name} is no finite number; get the file again")
    return number


def _here(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The kernel's shape of a torch weight's."""
    return (*shape[2:], shape[1], shape[0])


def _check_pair(
    path: Path,
    keys: dict[str, str],
    pair: dict[str, np.ndarray],
    kernel: tuple[int, ...],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Refuses a pair that is not finite or of another layer's shape.

    Raises:
      InputError: it is; names the key, and which base the file looks like.
    """
    *around, inputs, outputs = kernel
    rank = pair[UP].shape[1] if pair[UP].ndim > 1 else 0
    expected = {DOWN: (rank, inputs, *around), UP: (outputs, rank, *[1] * len(around))}
    for side, array in pair.items():
        if rank == 0 or array.shape != expected[side]:
            raise InputError(
                f"{path}: {keys[side]} has shape {array.shape}, this model's is {expected[side]}; "
                f"it looks like a LoRA for {base_of(arrays)}"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{path}: {keys[side]} has an infinity or a NaN; get the file again")


def base_of(arrays: Mapping[str, np.ndarray]) -> str:
    """The base that a file's arrays look like."""
    for key in arrays:
        if re.search(r"attn2.to_k.*(down|lora_A)", key):
            width = arrays[key].shape[-1] if arrays[key].ndim == 2 else arrays[key].size
            return BASES.get(width, f"a model whose texts have {width} features")
    return "another base"


class _Header:
    """What the header of a file says of alpha; in peft's form."""

    def __init__(self, path: Path, facts: dict[str, Any]):
        self._path, self._facts = path, facts

    def alpha(self, part: str, layer: str, rank: int) -> float:
        """Of a layer; r where nothing is said.

        Raises:
          InputError: it is no number.
        """
        prefix = "unet" if part == "denoiser" else part
        facts = {k.removeprefix(f"{prefix}."): v for k, v in self._facts.items()}
        patterns = facts.get("alpha_pattern") or {}
        name = next((p for p in patterns if _fits(p, layer)), None)  # the first, as in peft
        alpha = facts.get("lora_alpha", rank) if name is None else patterns[name]
        alpha = _number(self._path, "lora_alpha", alpha)
        return alpha * rank**0.5 if facts.get("use_rslora") else alpha


def _fits(pattern: str, layer: str) -> bool:
    """Whether a pattern of peft, a regular expression, is the end of a layer's path."""
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", layer) is not None
    except re.error:
        return False


def _header(path: Path) -> _Header:
    with safe_open(path, framework="np") as file:
        text = (file.metadata() or {}).get(METADATA, "")
    beside = path.with_name(CONFIG_FILE)
    if not text and path.name == PEFT_FILE and beside.exists():
        return _Header(path, read_json(beside, "get it again"))
    try:
        facts = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"{path}: {METADATA} in its header is no JSON; get it again") from error
    return _Header(path, facts if isinstance(facts, dict) else {})
