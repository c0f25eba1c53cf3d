"""A network for comparing pictures that is small enough for tests, and metrics of it; as a program
it registers them and then does what slam-jax would."""

import hashlib
import sys

import jax.numpy as jnp
import numpy as np

from slam_jax.drawing.metrics.frechet import FdOfNetwork
from slam_jax.drawing.metrics.registry import METRICS
from slam_jax.evaluation import parts
from slam_jax.features.network import TextImageNetwork
from slam_jax.features.registry import NETWORKS, Kind

WIDTH = 6


class Colours(TextImageNetwork):
    """Random mixtures of pixels, and of a text's letters."""

    def prepare(self, image):
        assert image.dtype == np.uint8 and image.ndim == 3
        return image[:8, :8].astype(np.float32) / 255

    def apply(self, params, x):
        return jnp.tanh(jnp.einsum("bhwc,hwcd->bd", x, params["pixels"]))

    def tokens(self, texts):
        return np.array([[len(text), *map(ord, text[-3:])] for text in texts])

    def apply_text(self, params, tokens):
        return jnp.sin(tokens @ params["letters"])


def open_colours(path):
    seed = int(path)
    generator = np.random.default_rng(seed)
    pixels = generator.standard_normal((8, 8, 3, WIDTH), np.float32) / 8
    letters = generator.standard_normal((4, WIDTH), np.float32)
    identity = {
        "network": "colours",
        "file": path,
        "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "resizer": "crop",
    }
    return Colours("colours", WIDTH, {"pixels": pixels, "letters": letters}, identity)


def register(setitem=dict.__setitem__, part=16):
    """Adds them; `setitem` is a monkeypatch's."""
    setitem(NETWORKS, "colours", Kind(open_colours, default="0", where="here"))
    for compared in ("teacher", "reference"):
        name = f"fd_colours_{compared}"
        setitem(METRICS, name, FdOfNetwork(name, name, "colours", compared))
    parts.PART = part


if __name__ == "__main__":
    register()
    from slam_jax.__main__ import main

    main(sys.argv[1:])
