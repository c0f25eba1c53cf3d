"""Writes resize.npz: what the programs give whose numbers slam_jax.features.resize repeats.

    python3 -m venv .venv-peers
    .venv-peers/bin/pip install torch==2.14.1 torchvision==0.29.1 clean-fid==0.1.35 \
        torch-fidelity==0.4.0
    .venv-peers/bin/python tests/features/golden/make_resize.py

torchvision fits another torch than the tests need, so that they cannot call these programs.
"""

from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.functional as vision
from cleanfid.resize import build_resizer, make_resizer
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

# Enlarged and reduced, square and not, with odd and even numbers of pixels too many.
SHAPES = ((64, 64), (37, 53), (90, 44), (31, 28), (32, 29), (299, 299), (330, 411), (512, 512))
EVERY = 13  # of 299 x 299 pixels, every 13th of every 13th row is kept


def picture(height: int, width: int) -> np.ndarray:
    """A picture with edges everywhere, of whole numbers, the same on every machine."""
    y, x, c = np.mgrid[:height, :width, :3]
    return ((y * y * 3 + x * y * 7 + x * 11 + c * 85) % 256).astype(np.uint8)


def gigagan(image: np.ndarray, size: int) -> np.ndarray:
    """As evaluation.py of GigaGAN and coco_evaluator.py of DMD2 do it."""
    square = vision.center_crop(Image.fromarray(image), min(image.shape[:2]))
    return np.array(square.resize((size, size), Image.LANCZOS))


def tensorflow1(image: np.ndarray, size: int) -> np.ndarray:
    channels_first = torch.tensor(image).permute(2, 0, 1)[None].float()
    resized = interpolate_bilinear_2d_like_tensorflow1x(
        channels_first, size=(size, size), align_corners=False
    )
    return resized[0].permute(1, 2, 0).numpy()


def main():
    arrays = {}
    for shape in SHAPES:
        image, key = picture(*shape), "x".join(map(str, shape))
        arrays[f"clean_299_{key}"] = build_resizer("clean")(image)[::EVERY, ::EVERY]
        arrays[f"clean_20_{key}"] = make_resizer("PIL", False, "bicubic", (20, 20))(image)
        arrays[f"tensorflow1_299_{key}"] = tensorflow1(image, 299)[::EVERY, ::EVERY]
        arrays[f"tensorflow1_20_{key}"] = tensorflow1(image, 20)
        arrays[f"center_crop_lanczos_20_{key}"] = gigagan(image, 20)
        crop = vision.center_crop(Image.fromarray(image), 28)
        arrays[f"center_crop_28_{key}"] = np.array(crop)
    np.savez_compressed(Path(__file__).with_name("resize.npz"), **arrays)


if __name__ == "__main__":
    main()
