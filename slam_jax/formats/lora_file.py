"""LoRA files as those of kohya's sd-scripts, which diffusers and ComfyUI read.

    lora_unet_<path of the layer, with underscores>.lora_down.weight    [r, in] or [r, in, H, W]
    lora_unet_<path of the layer, with underscores>.lora_up.weight      [out, r] or [out, r, 1, 1]
    lora_unet_<path of the layer, with underscores>.alpha               r

The paths are those of diffusers. alpha is written out, and is the rank: whoever does not read it
computes the same.
"""

from pathlib import Path

import numpy as np

from slam_jax.formats import convert
from slam_jax.formats.safetensors import save_arrays
from slam_jax.models.functional import Params
from slam_jax.models.lora import DOWN

FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
UNET = "lora_unet"


def kohya_arrays(adapters: Params) -> dict[str, np.ndarray]:
    """Keys and arrays of a file.

    Args:
      adapters: of a UNet, with alpha = rank.
    """
    arrays = {}
    for path, array in convert.to_torch(adapters).items():
        layer, side, name = path.rsplit(".", 2)
        key = f"{UNET}_{layer.replace('.', '_')}"
        arrays[f"{key}.{side}.{name}"] = array.astype(np.float16)
        if side == DOWN:
            arrays[f"{key}.alpha"] = np.float16(len(array))
    return arrays


def write_lora(path: Path, adapters: Params) -> None:
    """Writes them as float16.

    Raises:
      OSError: the file cannot be written.
    """
    save_arrays(path, kohya_arrays(adapters))
