"""Images with captions become examples to train on: crop, flip, choose a caption, tokenize."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from slam_jax.data import images
from slam_jax.data.batches import Batch
from slam_jax.data.examples import Example, Examples
from slam_jax.data.rejects import Rejects, first_usable

CROPS = ("random", "center")
CAPTIONS = ("random", "first")


class Crop(NamedTuple):
    """A square piece of a picture.

    Attributes:
      image: R pixels on each side.
      time_ids: SDXL's: height and width of the picture as it came, top and left of the crop after
        resizing, height and width of the crop.
    """

    image: UInt8[np.ndarray, "R R 3"]
    time_ids: Float[np.ndarray, " 6"]


@dataclass(frozen=True)
class Transform:
    """What is done to an example.

    Attributes:
      resolution: R; the shorter side is resized to it.
      crop: where the square is taken from what is left over on the longer side.
      flip: mirror half of the crops.
      captions: which of several is taken.
      empty_prompts: share of the examples that lose their caption.
    """

    resolution: int
    crop: str = "random"
    flip: bool = False
    captions: str = "random"
    empty_prompts: float = 0.0

    def cut(self, example: Example, place: float = 0.5) -> Crop:
        """Resizes and crops.

        Args:
          example: of which `place` is the crop's position along the longer side, in [0, 1).

        Raises:
          Rejected: the image cannot be used.
        """
        size = self.resolution
        if isinstance(example.image, bytes):
            height, width = images.read_size(example.image, example.name)
            picture = images.decode(example.image, example.name, shorter=size)
        else:
            height, width = example.image.shape[:2]
            picture = Image.fromarray(example.image)
        resized = self._resized(height, width)
        top, left = (int(place * (side - size + 1)) for side in resized)
        # Only what the crop shows is resized.
        down, across = (side / new for side, new in zip(picture.size[::-1], resized, strict=True))
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        square = picture.resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=3.0)
        ids = np.array([height, width, top, left, size, size], np.float32)
        return Crop(np.asarray(square), ids)

    def mirror(self, crop: Crop) -> Crop:
        """The same crop of the mirrored picture."""
        height, width, top, left, *size = crop.time_ids
        across = self._resized(int(height), int(width))[1]
        ids = np.array([height, width, top, across - self.resolution - left, *size], np.float32)
        return Crop(crop.image[:, ::-1], ids)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the whole picture, of which a crop is cut."""
        scale = self.resolution / min(height, width)
        fits = [max(round(side * scale), self.resolution) for side in (height, width)]
        return fits[0], fits[1]

    def draw(self, example: Example, rng: np.random.Generator) -> tuple[Crop, str]:
        """A crop and a caption, as `rng` decides.

        Raises:
          Rejected: the image cannot be used.
        """
        # All are drawn whatever is asked for, so that no option changes what another one does.
        place, mirrored, choice, emptied = rng.random(4)
        crop = self.cut(example, place if self.crop == "random" else 0.5)
        if self.flip and mirrored < 0.5:
            crop = self.mirror(crop)
        which = int(choice * len(example.captions)) if self.captions == "random" else 0
        return crop, "" if emptied < self.empty_prompts else example.captions[which]


class ImageText:
    """A source of batches {"images": uint8 [B, R, R, 3], "tokens": int32 [B, ...], "time_ids":
    float32 [B, 6]}.

    Args:
      examples: images with captions.
      transform: what is done to them.
      tokenize: texts -> token ids, one row for each.
    """

    def __init__(
        self,
        examples: Examples,
        transform: Transform,
        tokenize: Callable[[list[str]], Int[np.ndarray, "N ..."]],
    ):
        self._examples, self._transform, self._tokenize = examples, transform, tokenize
        self.name, self.identity = examples.name, examples.identity

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> tuple[Batch, Rejects]:
        def draw(index: int, rng: np.random.Generator) -> tuple[Crop, str]:
            return self._transform.draw(self._examples[index], rng)

        rejects, crops, captions = Rejects(), [], []
        for index, seed in zip(indices, seeds, strict=True):
            crop, caption = first_usable(draw, int(index), int(seed), len(self), rejects, self.name)
            crops.append(crop)
            captions.append(caption)
        return {
            "images": np.stack([crop.image for crop in crops]),
            "tokens": self._tokenize(captions),
            "time_ids": np.stack([crop.time_ids for crop in crops]),
        }, rejects
