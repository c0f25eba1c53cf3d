"""Reads LoRA files of any layout: kohya's, diffusers' of several years, peft's.

`lora_names` knows how they call a layer, `lora_keys` their pairs. A layer's change is (alpha / r)
up down. alpha stands in an array beside the two, in the file's header (`lora_adapter_metadata`,
which diffusers writes), in adapter_config.json beside the file (peft), or nowhere, which means r.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.formats import convert
from slam_jax.formats.lora_header import finite_number, read_header
from slam_jax.formats.lora_keys import ALPHA, layer_shape, pair_problem, place_keys, split_keys
from slam_jax.formats.lora_names import Names
from slam_jax.formats.safetensors import open_arrays
from slam_jax.models.functional import Params, flatten, unflatten
from slam_jax.models.lora import DOWN, UP, scaled
from slam_jax.models.published_networks import kernel_shapes


@dataclass(frozen=True)
class LoraFile:
    """What a file holds.

    Attributes:
      adapters: part of the model, such as "denoiser" -> adapters with alpha = r.
      unused: keys that no layer of the model has.
    """

    adapters: dict[str, Params]
    unused: tuple[str, ...] = ()


def read_lora(path: Path, params: Mapping[str, Params], layers_per_block: int | None) -> LoraFile:
    """Reads a file for a model.

    Args:
      path: of a safetensors file.
      params: arrays or shapes of the model's parts: "denoiser", "text_encoder", ...
      layers_per_block: of its UNet; None: its denoiser is none.

    Raises:
      InputError: the file cannot be read, is no LoRA, has an array that is not finite, or is for
        another base.
    """
    arrays, header = open_arrays(path), read_header(path)
    layers, shapes = kernel_shapes(params), arrays.shapes()
    placed = place_keys(path, split_keys(path, arrays), Names(layers, layers_per_block))
    if not placed.pairs:
        first = next(iter(arrays), "no key at all")
        raise InputError(f"{path}: no LoRA of this model: {first} is none of its layers'")
    adapters: dict[str, Params] = {}
    for (part, layer), sides in placed.pairs.items():
        if missing := {DOWN, UP} - sides.keys():
            raise InputError(f"{path}: {layer} has no {missing.pop()}; get the file again")
        kernel = layers[part][layer]
        if problem := pair_problem(sides, shapes, kernel, "this model"):
            raise InputError(f"{path}: {problem}")
        pair = {
            side: arrays[sides[side]]
            .astype(np.float32)
            .reshape(layer_shape(shapes[sides[side]], len(kernel)))
            for side in (DOWN, UP)
        }
        for side, array in pair.items():
            if not np.isfinite(array).all():
                what = f"{path}: {sides[side]} has an infinity or a NaN"
                raise InputError(f"{what}; get the file again")
        rank = len(pair[DOWN])
        if ALPHA in sides:
            alpha = finite_number(path, sides[ALPHA], arrays[sides[ALPHA]])
        else:
            alpha, _ = header.alpha(part, layer, rank)
        for name, leaf in flatten(_adapter(pair, alpha / rank)).items():
            adapters.setdefault(part, {})[f"{layer}.{name}"] = leaf
    trees = {part: unflatten(flat) for part, flat in adapters.items()}
    return LoraFile(trees, placed.unused)


def _adapter(pair: Mapping[str, np.ndarray], scale: float) -> Params:
    """A layer's adapter with alpha = r.

    Args:
      pair: torch's arrays.
      scale: alpha / r.
    """
    state = {f"{side}.weight": array for side, array in pair.items()}
    shapes = {
        side: {"kernel": jax.ShapeDtypeStruct(_here(array.shape), np.float32)}
        for side, array in pair.items()
    }
    adapter, _, _ = convert.from_torch(state, shapes)
    return scaled(adapter, scale)


def _here(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The kernel's shape of a torch weight's."""
    return (*shape[2:], shape[1], shape[0])
