"""Inception v3, in whose features the Fréchet Inception Distance is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, UInt8

from slam_jax.base.errors import InputError
from slam_jax.base.files import sha256
from slam_jax.features import resize, weights
from slam_jax.features.network import FeatureNetwork, full_precision
from slam_jax.formats import convert, torch_file
from slam_jax.models import functional
from slam_jax.models.functional import Params
from slam_jax.models.inception import FEATURES, SIZE, InceptionV3

# The same network three times: by pytorch-fid, by torch-fidelity, and by NVIDIA in TorchScript. The
# names of the first two end in the first digits of their SHA-256.
FILES = (
    "pt_inception-2015-12-05-6726825d.pth",
    "weights-inception-2015-12-05-6726825d.pth",
    "inception-2015-12-05.pt",
)
SHA256_BEGINS = "6726825d"
SCRIPT_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
WHERE = (
    f"take {FILES[0]} from https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights (its "
    f"SHA-256 begins with {SHA256_BEGINS})"
)
LAST_LAYER = ("fc.weight", "fc.bias")
CLASSES = 1008


@dataclass(frozen=True, eq=False)
class Inception(FeatureNetwork):
    """Pictures to 2048 features.

    Attributes:
        resizer: a picture to 299 pixels a side, in [0, 255].
    """

    resizer: Callable[[UInt8[np.ndarray, "H W 3"], int], np.ndarray]

    def prepare(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "299 299 3"]:
        return self.resizer(image, SIZE).astype(np.float32)

    def apply(self, params: Params, x: Array) -> Float[Array, "B 2048"]:
        return full_precision(functional.apply_fn(InceptionV3, None))(params, x)


def open_whole(path: str) -> Inception:
    """The network for whole pictures, resized as clean-fid does.

    Args:
        path: a file as in FILES or one in safetensors with its names, a folder or a hub id.

    Raises:
        InputError: no such file, a damaged one, or another network's.
    """
    return _open("inception", path, resize.clean, "clean-fid's bicubic to 299 pixels")


def open_tensorflow1(path: str) -> Inception:
    """The network for whole pictures, resized as torch-fidelity and the first FIDs do.

    Args:
        path: as in `open_whole`.

    Raises:
        InputError: as in `open_whole`.
    """
    described = "TensorFlow 1.x's bilinear to 299 pixels, as torch-fidelity"
    return _open("inception_tf1", path, resize.tensorflow1, described)


def open_patch(path: str) -> Inception:
    """The network for the middle of large pictures, which is not resized.

    Args:
        path: as in `open_whole`.

    Raises:
        InputError: as in `open_whole`.
    """
    return _open("inception_patch", path, resize.center_crop, "centre crop of 299 pixels")


def _open(name: str, path: str, resizer: Callable[..., np.ndarray], described: str) -> Inception:
    file = weights.locate(path, ("model.safetensors", *FILES))
    digest = sha256(file)
    if file.name in FILES[:2] and not digest.startswith(SHA256_BEGINS):
        raise InputError(
            f"{file}: damaged: its SHA-256 begins with {digest[:8]}, by its name it should begin "
            f"with {SHA256_BEGINS}; get it again"
        )
    identity = weights.identity(name, file, digest, described)
    return Inception(name, FEATURES, _params(file, digest), identity, resizer)


def _params(file: Path, digest: str) -> Params:
    """The weights of a file whose SHA-256 is `digest`.

    Raises:
        InputError: it is damaged, or another network's.
    """
    if torch_file.is_script(file):
        if digest != SCRIPT_SHA256:
            raise InputError(
                f"{file}: a TorchScript program, which could run any code, and not NVIDIA's "
                f"{FILES[2]}, whose SHA-256 is {SCRIPT_SHA256}; {WHERE}"
            )
        arrays = convert.from_tensorflow_names(torch_file.load_script(file))
    else:
        arrays = weights.read_arrays(file)
    if any(key.startswith("AuxLogits.") for key in arrays):
        raise InputError(
            f"{file}: torchvision's Inception, in whose features FID is another number; {WHERE}"
        )
    if "fc.weight" in arrays and (classes := len(arrays["fc.weight"])) != CLASSES:
        raise InputError(
            f"{file}: an Inception of {classes} classes, that of FID has {CLASSES}; {WHERE}"
        )
    abstract = functional.abstract_params(InceptionV3, None)
    return weights.to_params(file, arrays, abstract, unused=LAST_LAYER)
