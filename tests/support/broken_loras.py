"""What is done to a LoRA file that `slam-jax check` then has to complain about."""

import numpy as np
from safetensors.numpy import save_file

from slam_jax.formats.safetensors import load_arrays, save_arrays

SIDE = "lora_unet_mid_block_resnets_0_conv1"  # a layer's keys in kohya's layout


def arrays(**changes):
    """Writes some of a file's arrays anew; None takes one away."""

    def edit(path):
        named = {f"{SIDE}.{name.replace('__', '.')}": value for name, value in changes.items()}
        content = load_arrays(path) | named
        save_arrays(path, {key: array for key, array in content.items() if array is not None})

    return edit


def other(key, shape=(3, 4)):
    return lambda path: save_arrays(path, load_arrays(path) | {key: np.ones(shape, np.float32)})


def renamed(path):
    """As if it were for another network."""
    content = load_arrays(path)
    save_arrays(path, {k.replace("_blocks", "_double_blocks"): a for k, a in content.items()})


def zero(path):
    save_arrays(path, {k: a * 0 if "lora_up" in k else a for k, a in load_arrays(path).items()})


def header(text):
    return lambda path: save_file(load_arrays(path), path, {"lora_adapter_metadata": text})


def halves(path):
    content = load_arrays(path)
    save_arrays(path, {key: array for key, array in content.items() if "lora_up" not in key})


def patterns(path):
    content = load_arrays(path)
    save_arrays(path, {key: array for key, array in content.items() if "alpha" not in key})
    header('{"unet.alpha_pattern": [1]}')(path)


def ones(*shape):
    return np.ones(shape, np.float32)
