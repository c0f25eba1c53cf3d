"""Random weights of Inception, and pictures for it: the same for every version of numpy."""

import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "models/golden/inception.npz"


def published():
    """Arrays by all names of pytorch-fid's file, in the shapes that they have there."""
    with np.load(GOLDEN) as golden:
        shapes = [tuple(int(n) for n in shape if n) for shape in golden["shapes"]]
        return state_dict(dict(zip(golden["names"].tolist(), shapes, strict=True)))


def state_dict(shapes):
    """Arrays that keep activations of ordinary size, by pytorch-fid's names -> shapes."""
    return {name: _array(name, tuple(shape)) for name, shape in shapes.items()}


def _array(name, shape):
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:  # a kernel
        values *= np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        values = np.exp(values / 4)
    else:
        values = values / 4 + name.endswith("bn.weight")
    return values.astype(np.float32)


def pictures():
    """Noise and coloured squares, uint8 [2, 299, 299, 3]."""
    random = np.random.RandomState(0)
    noise = random.randint(0, 256, (299, 299, 3))
    squares = random.randint(0, 256, (13, 13, 3)).repeat(23, axis=0).repeat(23, axis=1)
    return np.stack([noise, squares]).astype(np.uint8)
