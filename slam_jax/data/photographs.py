"""Real photographs that come with scikit-learn and scikit-image, with captions: images to train
on that need no download."""

from collections.abc import Callable
from functools import partial

import numpy as np
import skimage.data
from jaxtyping import Int, UInt8
from PIL import Image
from sklearn import datasets

CAPTIONS: dict[str, str] = {
    "china": "a Chinese temple with red walls and a golden roof among trees",
    "flower": "a pink dahlia flower in front of dark green leaves",
    "astronaut": "portrait of a smiling astronaut in an orange space suit",
    "chelsea": "close-up of a tabby cat's face",
    "coffee": "a cup of coffee on a wooden table",
    "rocket": "a rocket on its launch pad at dusk",
    "hubble_deep_field": "thousands of galaxies on a black sky, seen by a space telescope",
    "retina": "the retina of a human eye",
    "immunohistochemistry": "colon tissue under a microscope, stained blue and brown",
    "camera": "black and white photo of a man with a camera on a tripod",
    "coins": "black and white photo of ancient coins in rows",
    "moon": "black and white photo of the surface of the moon",
    "brick": "black and white photo of a brick wall",
    "grass": "black and white photo of grass",
    "gravel": "black and white photo of gravel",
}


def load() -> dict[str, UInt8[np.ndarray, "H W 3"]]:
    """Name -> photograph, in the sizes they have."""
    bundled = {name: partial(_scikit_learn, name) for name in ("china", "flower")}
    readers = {name: bundled.get(name) or getattr(skimage.data, name) for name in CAPTIONS}
    images = {name: np.asarray(read()) for name, read in readers.items()}
    return {
        name: image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        for name, image in images.items()
    }


def _scikit_learn(name: str) -> np.ndarray:
    return datasets.load_sample_image(f"{name}.jpg")


class Source:
    """Random crops of the photographs, for the batch pipeline.

    A batch is {"images": uint8 [B, R, R, 3], "tokens": int32 [B, ...] of the captions,
    "time_ids": float32 [B, 6]}; the last are SDXL's: height and width of the photograph, top and
    left of the crop (after resizing), height and width of the crop.

    Args:
      tokenize: texts -> token ids, one row for each.
      resolution: R; the shorter side is resized to it before the crop.
      flip: mirror half of the crops.
    """

    def __init__(
        self,
        tokenize: Callable[[list[str]], Int[np.ndarray, "N ..."]],
        resolution: int,
        flip: bool,
    ):
        photographs = load()
        self._sizes = [image.shape[:2] for image in photographs.values()]
        self._images = [_resized(image, resolution) for image in photographs.values()]
        self._tokens = tokenize([CAPTIONS[name] for name in photographs])
        self._resolution, self._flip = resolution, flip

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        crops = [self._crop(i, seed) for i, seed in zip(indices, seeds, strict=True)]
        images, corners = zip(*crops, strict=True)
        target = (self._resolution, self._resolution)
        ids = [
            (*self._sizes[i], *corner, *target) for i, corner in zip(indices, corners, strict=True)
        ]
        return {
            "images": np.stack(images),
            "tokens": self._tokens[indices],
            "time_ids": np.array(ids, np.float32),
        }

    def _crop(self, index: int, seed: int) -> tuple[np.ndarray, tuple[int, int]]:
        rng, image, size = np.random.default_rng(seed), self._images[index], self._resolution
        top, left = (int(rng.integers(edge - size + 1)) for edge in image.shape[:2])
        crop = image[top : top + size, left : left + size]
        if self._flip and rng.random() < 0.5:  # the mirrored photograph's crop
            return crop[:, ::-1], (top, image.shape[1] - size - left)
        return crop, (top, left)


def _resized(image: UInt8[np.ndarray, "H W 3"], shorter: int) -> UInt8[np.ndarray, "H W 3"]:
    """The photograph with its shorter side at `shorter` pixels."""
    height, width = image.shape[:2]
    scale = shorter / min(height, width)
    size = (max(round(width * scale), shorter), max(round(height * scale), shorter))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
