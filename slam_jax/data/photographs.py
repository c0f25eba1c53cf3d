"""Real photographs that come with scikit-learn and scikit-image, with captions: images to train
on that need no download."""

from functools import partial

import numpy as np
from jaxtyping import UInt8

from slam_jax.data.examples import Example
from slam_jax.data.rejects import Rejects

CAPTIONS: dict[str, str] = {
    "china": "a Chinese temple with red walls and a golden roof among trees",
    "flower": "an orange dahlia flower in front of dark green leaves",
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
    import skimage.data  # these two take a while
    from sklearn import datasets

    def bundled_with_sklearn(name):
        return datasets.load_sample_image(f"{name}.jpg")

    bundled = {name: partial(bundled_with_sklearn, name) for name in ("china", "flower")}
    readers = {name: bundled.get(name) or getattr(skimage.data, name) for name in CAPTIONS}
    images = {name: np.asarray(read()) for name, read in readers.items()}
    return {
        name: image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        for name, image in images.items()
    }


class Photographs:
    """They, as examples."""

    name = identity = "photographs"

    def __init__(self):
        self._images, self.rejects = load(), Rejects()
        self._names = list(self._images)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        name = self._names[index]
        return Example(name, self._images[name], (CAPTIONS[name],))
