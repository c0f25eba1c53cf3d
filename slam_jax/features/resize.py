"""How pictures are resized before a network sees them: each way is a published program's, number
for number, since distances between features change with it.

Parmar et al., "On Aliased Resizing and Surprising Subtleties in GAN Evaluation" (CVPR 2022), shows
how much. Every function takes any height and width, and no function changes its argument.
"""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from slam_jax.base.errors import InputError

# OpenAI's, of CLIP's training images, in [0, 1] (preprocessor_config.json of its checkpoints).
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

Picture = UInt8[np.ndarray, "H W 3"]


def center_crop_lanczos(image: Picture, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The centre square by Lanczos, with the corners and the rounding of the text-to-image papers.

    GigaGAN (evaluation/evaluation.py) and DMD2 (main/coco_eval/coco_evaluator.py) treat drawn and
    real pictures so, with torchvision's `center_crop` and Pillow's `resize`, before they are given
    to clean-fid or CLIP; with size 256 on COCO.

    Args:
      image: the picture.
      size: S, pixels of a side.
    """
    square = _cropped(image, min(image.shape[:2]))
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))


def center_crop(image: Picture, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """A piece of the centre, not resized: the "patch FID" of SDXL students, with size 299.

    As DMD2 (main/coco_eval/coco_evaluator.py), with torchvision's `center_crop`. DMD2 lets smaller
    pictures pass uncropped.

    Args:
      image: the picture.
      size: S, pixels of a side.

    Raises:
      InputError: the picture is smaller.
    """
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise InputError(
            f"a picture of {width} x {height} pixels: expected at least {size} x {size}, as "
            "patches are not enlarged; draw larger pictures, or measure whole ones"
        )
    return _cropped(image, size)


def clean(image: Picture, size: int) -> Float[np.ndarray, "S S 3"]:
    """Bicubic without rounding to whole numbers, in [0, 255]: clean-fid's `build_resizer("clean")`.

    Each channel is a Pillow image of floats; what the filter puts outside [0, 255] is clipped.

    Args:
      image: the picture, which is stretched where it is no square.
      size: S, pixels of a side, 299 for Inception.
    """
    channels = [
        Image.fromarray(image[..., channel].astype(np.float32)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)


def tensorflow1(image: Picture, size: int) -> Float[np.ndarray, "S S 3"]:
    """Bilinear as TensorFlow 1.x has it, in [0, 255]: pixel i is taken at i * old / new, without
    the half pixel of later programs, and without a filter against aliasing.

    As `interpolate_bilinear_2d_like_tensorflow1x` of torch-fidelity, whose Inception does so to
    pictures of any size (`align_corners=False`).

    Args:
      image: the picture, which is stretched where it is no square.
      size: S, pixels of a side, 299 for Inception.
    """
    rows, lower_rows, down = _places(image.shape[0], size)
    columns, right_columns, across = _places(image.shape[1], size)
    pixels = image.astype(np.float32)
    down, across = down[:, None, None], across[:, None]
    upper, lower = pixels[rows], pixels[lower_rows]
    top = upper[:, columns] + (upper[:, right_columns] - upper[:, columns]) * across
    bottom = lower[:, columns] + (lower[:, right_columns] - lower[:, columns]) * across
    return top + (bottom - top) * down


def clip(image: Picture, size: int) -> Float[np.ndarray, "S S 3"]:
    """What CLIP sees: the shorter side resized by bicubic, the centre square, standardised.

    As transformers' CLIPImageProcessor on Pillow (CLIPImageProcessorPil), with the settings of
    OpenAI's checkpoints. OpenAI's own preprocessing differs where what is cut off the longer side
    is an odd number of pixels: it crops a pixel further on half of the time.

    Args:
      image: the picture.
      size: S, pixels of a side: 224, or 336 for ViT-L/14-336.
    """
    height, width = image.shape[:2]
    longer = int(size * max(height, width) / min(height, width))
    resized = (size, longer) if width <= height else (longer, size)  # width, height
    pixels = np.asarray(Image.fromarray(image).resize(resized, Image.Resampling.BICUBIC))
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return _standardised(pixels[top : top + size, left : left + size])


def cmmd(image: Picture, size: int) -> Float[np.ndarray, "S S 3"]:
    """What CLIP sees when CMMD is measured: the centre square, then bicubic, standardised.

    As google-research's cmmd (io_util.py `_center_crop_and_resize`, embedding.py): it crops before
    it resizes, and `clip` after. Of a square picture the two are the same.

    Args:
      image: the picture.
      size: S, pixels of a side, 336 for ViT-L/14-336.
    """
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    square = Image.fromarray(image[top : top + side, left : left + side])
    return _standardised(np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)))


def _cropped(image: Picture, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """torchvision's `center_crop`: half a pixel is rounded to the even one."""
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def _places(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each new pixel: the old one before it, the one behind it, and the share of the latter."""
    places = np.arange(new, dtype=np.float32) * np.float32(old / new)
    before = places.astype(np.int64)
    return before, np.minimum(before + 1, old - 1), places - before.astype(np.float32)


def _standardised(pixels: UInt8[np.ndarray, "S S 3"]) -> Float[np.ndarray, "S S 3"]:
    """In [0, 1], less CLIP's mean, by its deviation."""
    return ((pixels.astype(np.float64) / 255).astype(np.float32) - CLIP_MEAN) / CLIP_STD
