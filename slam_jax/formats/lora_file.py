"""LoRA files in two layouts, kohya's and diffusers'.

Of kohya's sd-scripts, which diffusers and ComfyUI read:

    lora_unet_<path of the layer, with underscores>.lora_down.weight    [r, in] or [r, in, H, W]
    lora_unet_<path of the layer, with underscores>.lora_up.weight      [out, r] or [out, r, 1, 1]
    lora_unet_<path of the layer, with underscores>.alpha               r

As diffusers and peft write them today, with r and alpha in the file's header:

    unet.<path of the layer>.lora_A.weight                              [r, in] or [r, in, H, W]
    unet.<path of the layer>.lora_B.weight                              [out, r] or [out, r, 1, 1]

Of a transformer, "transformer." stands in place of "unet.", and there is this layout alone.

The paths are those of diffusers. alpha is written out, and is the rank: whoever does not read it
computes the same.
"""

import json
from pathlib import Path

import numpy as np

from slam_jax.formats import convert
from slam_jax.formats.lora_header import METADATA
from slam_jax.formats.safetensors import save_arrays
from slam_jax.models.functional import Params
from slam_jax.models.lora import DOWN, UP, rank_of

FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
KEYS = ("kohya", "diffusers")
# What diffusers reads, by the folder of the denoiser.
LAYOUTS = {"unet": KEYS, "transformer": ("diffusers",)}


def kohya_arrays(adapters: Params) -> dict[str, np.ndarray]:
    """Keys and arrays of a file of kohya's layout.

    Args:
      adapters: of a UNet, with alpha = rank.
    """
    arrays = {}
    for path, array in convert.to_torch(adapters).items():
        layer, side, name = path.rsplit(".", 2)
        key = f"lora_unet_{layer.replace('.', '_')}"
        arrays[f"{key}.{side}.{name}"] = array.astype(np.float16)
        if side == DOWN:
            arrays[f"{key}.alpha"] = np.float16(len(array))
    return arrays


def diffusers_arrays(adapters: Params, denoiser: str = "unet") -> dict[str, np.ndarray]:
    """Keys and arrays of a file of diffusers' layout.

    Args:
      adapters: with alpha = rank.
      denoiser: what they are of, a key of LAYOUTS.
    """
    sides, arrays = {DOWN: "lora_A", UP: "lora_B"}, {}
    for path, array in convert.to_torch(adapters).items():
        layer, side, name = path.rsplit(".", 2)
        arrays[f"{denoiser}.{layer}.{sides[side]}.{name}"] = array.astype(np.float16)
    return arrays


def diffusers_metadata(adapters: Params, denoiser: str = "unet") -> str:
    """What the header of such a file says: the options of peft's LoraConfig, as JSON.

    Args:
      adapters: all of one rank, which is alpha.
      denoiser: what they are of, a key of LAYOUTS.
    """
    rank, paths = rank_of(adapters), convert.to_torch(adapters)
    options = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({path.rsplit(".", 2)[0] for path in paths}),
        "rank_pattern": {},
        "alpha_pattern": {},
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
    named = {f"{denoiser}.{name}": value for name, value in options.items()}
    return json.dumps(named, indent=2, sort_keys=True)


def write_lora(path: Path, adapters: Params, keys: str = "kohya", denoiser: str = "unet") -> None:
    """Writes them as float16.

    Args:
      path: of the file.
      adapters: all of one rank, which is alpha.
      keys: the layout, one of LAYOUTS[denoiser].
      denoiser: what they are of.

    Raises:
      OSError: the file cannot be written.
    """
    if keys == "kohya":
        save_arrays(path, kohya_arrays(adapters))
    else:
        header = {METADATA: diffusers_metadata(adapters, denoiser)}
        save_arrays(path, diffusers_arrays(adapters, denoiser), header)
