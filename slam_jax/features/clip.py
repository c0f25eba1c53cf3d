"""CLIP, whose features of pictures and of texts can be compared: for CLIP score and CMMD,
and for caption retrieval by a CLIP of one's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from slam_jax.base.errors import InputError
from slam_jax.base.files import sha256
from slam_jax.base.json_file import read_json
from slam_jax.features import resize, weights
from slam_jax.features.network import PREFIX, TextImageNetwork, full_precision
from slam_jax.formats.diffusers_folder import Folder, read_tokenizer
from slam_jax.formats.tokenizer import Tokenizer
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.clip_vision import CLIPVisionConfig, CLIPVisionModel, read_config
from slam_jax.models.functional import Params

CONFIG = "config.json"
BESIDE = (CONFIG, "tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt")
UNUSED = ("logit_scale",)


class Size(NamedTuple):
    """What tells the published models apart.

    Attributes:
        image: pixels of a side of a picture.
        patch: of a patch.
        width: D, projected features.
    """

    image: int
    patch: int
    width: int

    def __str__(self) -> str:
        return f"pictures of {self.image} pixels, patches of {self.patch}, {self.width} features"


class Resizer(NamedTuple):
    """How a picture becomes what the network sees.

    Attributes:
        resize: a picture to pixels of a side, standardised.
        described: the same in words.
    """

    resize: Callable[[UInt8[np.ndarray, "H W 3"], int], Float[np.ndarray, "S S 3"]]
    described: str


PROCESSOR = Resizer(resize.clip, "CLIP's bicubic and centre crop")
CMMD = Resizer(resize.cmmd, "CMMD's centre crop and bicubic")


@dataclass(frozen=True, eq=False)
class Clip(TextImageNetwork):
    """Both towers of a CLIP, with their projections; features are not of length 1.

    Attributes:
        text, vision: their configurations.
        tokenizer: of the texts.
        resizer: of the pictures.
    """

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    tokenizer: Tokenizer
    resizer: Resizer

    def prepare(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "S S 3"]:
        return self.resizer.resize(image, self.vision.image_size)

    def apply(self, params: Params, x: Array) -> Float[Array, "B D"]:
        apply = functional.apply_fn(CLIPVisionModel, self.vision)
        tower = {key: params[key] for key in ("vision_model", "visual_projection")}
        return full_precision(apply)(tower, x)

    def tokens(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        return self.tokenizer(texts)

    def apply_text(self, params: Params, tokens: Array) -> Float[Array, "B D"]:
        apply = functional.apply_fn(CLIPTextModel, self.text)
        encoder = {key: params[key] for key in ("text_model", "text_projection")}
        return full_precision(apply)(encoder, tokens).pooled


def open_clip(
    name: str, size: Size | None, path: str, resizer: Resizer = PROCESSOR, prefix: str = PREFIX
) -> Clip:
    """A CLIP in the layout of transformers.

    Args:
        name: in the registry.
        size: what it has to be; None: any.
        path: its folder, the weights in it, or a hub id.
        resizer: of the pictures.
        prefix: what a prompt is read behind.

    Raises:
        InputError: a file is missing, damaged or another network's, or the CLIP is of another size.
    """
    file = weights.locate(path, weights.MODEL_FILES, BESIDE)
    text, vision = _configs(file.with_name(CONFIG), name, size)
    abstract = functional.abstract_params(CLIPTextModel, text)
    abstract |= functional.abstract_params(CLIPVisionModel, vision)
    digest = sha256(file)
    params = weights.to_params(file, weights.read_arrays(file), abstract, UNUSED)
    resized = f"{resizer.described} to {vision.image_size} pixels"
    identity = weights.identity(name, file, digest, resized)
    tokenizer = read_tokenizer(Folder(file.parent, path), "")
    parts = text, vision, tokenizer, resizer
    return Clip(name, vision.projection_dim, params, identity, *parts, prefix=prefix)


def _configs(path: Path, name: str, size: Size | None) -> tuple[CLIPTextConfig, CLIPVisionConfig]:
    """The configurations of both towers.

    Raises:
        InputError: the file is missing or damaged, or says something else.
    """
    content = read_json(path, "a CLIP's folder has it; get the whole folder")
    try:
        text, vision = read_config(content)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    found = Size(vision.image_size, vision.patch_size, vision.projection_dim)
    if size is not None and found != size:
        raise InputError(f"{path}: a CLIP for {found}; {name} is one for {size}")
    return text, vision
