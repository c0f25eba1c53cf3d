"""What is done to a picture, drawn or real, before any network sees it."""

from slam_jax.features.extract import View
from slam_jax.features.resize import center_crop_lanczos


def view_of(size: int) -> View:
    """The centre square of a picture, by Lanczos in this size; 0: the picture as it is."""
    return (lambda image: center_crop_lanczos(image, size)) if size else (lambda image: image)
