"""DINOv2, in whose features FD-DINOv2 is (Stein et al., 2023, arXiv 2306.04675)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from slam_jax.base.errors import InputError
from slam_jax.base.files import sha256
from slam_jax.base.json_file import read_json
from slam_jax.features import weights
from slam_jax.features.network import FeatureNetwork, full_precision
from slam_jax.models import functional
from slam_jax.models.dinov2 import Dinov2Config, Dinov2Model
from slam_jax.models.functional import Params

CONFIG = "config.json"
SIZE = 224
UNUSED = ("embeddings.mask_token",)
# Of ImageNet, in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True, eq=False)
class Dinov2(FeatureNetwork):
    """Pictures to the features of the class token.

    Attributes:
        config: the network's.
    """

    config: Dinov2Config

    def prepare(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "224 224 3"]:
        """Both sides to 224 pixels by Pillow's bicubic, as dgm-eval does, and standardised."""
        resized = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return (np.asarray(resized).astype(np.float32) / 255 - MEAN) / STD

    def apply(self, params: Params, x: Array) -> Float[Array, "B D"]:
        return full_precision(functional.apply_fn(Dinov2Model, self.config))(params, x)


def open_dinov2(name: str, width: int, path: str) -> Dinov2:
    """A DINOv2 in the layout of transformers.

    Args:
        name: in the registry.
        width: D, which it has to have.
        path: its folder, the weights in it, or a hub id.

    Raises:
        InputError: a file is missing, damaged or another network's, or the network is of another
            size.
    """
    file = weights.locate(path, weights.MODEL_FILES, (CONFIG,))
    where = file.with_name(CONFIG)
    content = read_json(where, "a DINOv2's folder has it; get the whole folder")
    try:
        config = Dinov2Config.from_dict(content)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}") from error
    if config.hidden_size != width:
        raise InputError(
            f"{where}: a DINOv2 with hidden_size = {config.hidden_size}; {name} is one with {width}"
        )
    abstract = functional.abstract_params(Dinov2Model, config)
    digest = sha256(file)
    params = weights.to_params(file, weights.read_arrays(file), abstract, UNUSED)
    resized = f"Pillow's bicubic to {SIZE} pixels"
    identity = weights.identity(name, file, digest, resized)
    return Dinov2(name, width, params, identity, config)
