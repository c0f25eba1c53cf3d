"""What the keys of a LoRA file say: its layout, its pairs, the layers that they are for."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from slam_jax.base.errors import InputError
from slam_jax.formats.lora_names import WITH_UNDERSCORES, Names
from slam_jax.models.lora import DOWN, UP

ALPHA = "alpha"
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
    ".alpha": ALPHA,
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
SD3_WIDTH = 1536  # of the transformer of SD 3 and 3.5, medium
STABILITY = re.compile(
    r"lora_unet_(input_blocks|middle_block|output_blocks|out_2|time_embed_\d|label_emb)"
)
IN_2023 = re.compile(r"\.processor\.|lora\.(down|up)\.weight$|lora_linear_layer")
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Sides = dict[str, str]  # DOWN, UP and perhaps ALPHA -> key


@dataclass(frozen=True)
class Placed:
    """The pairs of a file on a model.

    Attributes:
      pairs: (part, layer) -> its keys.
      unused: keys that no layer of the model has.
    """

    pairs: dict[tuple[str, str], Sides]
    unused: tuple[str, ...]


def split_keys(path: Path, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Key -> what the file calls the layer, and DOWN, UP or ALPHA.

    Raises:
      InputError: a key is of another change of weights than a LoRA.
    """
    found = {}
    for key in keys:
        if other := next((name for part, name in OTHERS.items() if part in key), None):
            raise InputError(f"{path}: a {other}, which is not supported; expected a LoRA")
    for key in keys:
        end = next((end for end in ENDS if key.endswith(end)), None)
        if end is None:
            raise InputError(f"{path}: {key} is a kind of change that is not read; expected a LoRA")
        found[key] = key.removesuffix(end), ENDS[end]
    return found


def place_keys(path: Path, split: Mapping[str, tuple[str, str]], names: Names) -> Placed:
    """Finds the layers.

    Args:
      path: of the file.
      split: from `split_keys`.
      names: of the model's layers.

    Raises:
      InputError: two keys mean the same.
    """
    pairs, unused = {}, []
    for key, (name, side) in split.items():
        if (place := names.find(name)) is None:
            unused.append(key)
        elif (other := pairs.setdefault(place, {}).setdefault(side, key)) != key:
            raise InputError(f"{path}: {key} and {other} mean the same; get the file again")
    return Placed(pairs, tuple(sorted(unused)))


def layout_of(keys: Collection[str]) -> str:
    """Which program's layout a file has, as docs/lora.md lists them."""
    unet = [key for key in keys if key.startswith("lora_unet_")]
    if any(STABILITY.match(key) for key in unet):
        return "kohya's, StabilityAI's names"
    if unet:
        return "kohya's, diffusers' names"
    if any(key.startswith(tuple(WITH_UNDERSCORES)) for key in keys):
        return "kohya's, of text encoders alone"
    if any(IN_2023.search(key) for key in keys):
        return "diffusers' of 2023"
    parts = ("unet.", "transformer.", "text_encoder.", "text_encoder_2.")
    return "diffusers'" if any(key.startswith(parts) for key in keys) else "peft's"


def layer_shape(shape: Shape, ndim: int) -> Shape:
    """A side's shape with the axes of its layer's kernel: some files have 1x1 convolutions for
    linear layers, or the reverse."""
    if len(shape) == 4 and ndim == 2 and shape[2:] == (1, 1):
        return shape[:2]
    return (*shape, 1, 1) if len(shape) == 2 and ndim == 4 else shape


def pair_problem(sides: Sides, shapes: Shapes, kernel: Shape, model: str) -> str:
    """Why a pair is none of a layer with this kernel; "" if it is one.

    Args:
      sides: keys of the pair.
      shapes: of all the file's arrays.
      kernel: [in, out] or [H, W, in, out].
      model: what the layer is of, in words.
    """
    *around, inputs, outputs = kernel
    pair = {side: layer_shape(shapes[sides[side]], len(kernel)) for side in (DOWN, UP)}
    rank = pair[UP][1] if len(pair[UP]) > 1 else next(iter(pair[DOWN]), 0)
    expected = {DOWN: (rank, inputs, *around), UP: (outputs, rank, *[1] * len(around))}
    if rank == 0:
        return f"{sides[UP]} has rank 0, expected 1 or more; get the file again"
    for side, shape in pair.items():
        if shape != expected[side]:
            return (
                f"{sides[side]} has shape {shape}, {model}'s is {expected[side]}; "
                f"it looks like a LoRA for {base_of(shapes)}"
            )
    return ""


def base_of(shapes: Shapes) -> str:
    """The base that a file's arrays look like."""
    for key, shape in shapes.items():
        if re.search(r"attn2.to_k.*(down|lora_A)", key):
            width = shape[-1] if len(shape) == 2 else math.prod(shape[1:])
            return BASES.get(width, f"a model whose texts have {width} features")
        if re.search(r"attn.add_[qkv]_proj.*(down|lora_A)", key):
            width = shape[-1]
            return "SD 3.x" if width == SD3_WIDTH else f"a transformer of {width} features"
    return "another base"
