"""The rows of a step ladder as small pictures, in a folder beside it: what the report of a run
shows of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from slam_jax.base.json_file import write_json
from slam_jax.drawing.pictures import save_webp, to_uint8

ROWS_FILE = "rows.json"
SIDE = 192  # pixels of a picture in a strip, at most
SMALL = 64  # pixels on a side; pictures up to it are kept as they are, all of them
FEW = 8  # larger pictures in a strip, at most
BORDER = 0.999  # of [-1, 1]: values beyond it count as saturated


def save_strips(
    folder: Path,
    drawn: Mapping[tuple[str, int], Float[np.ndarray, "N H W C"]],
    prompts: Sequence[str],
    columns: int,
) -> None:
    """Writes a WebP for each row, its pictures side by side, and rows.json, which says what is in
    them, of how many pictures a row was measured, and how much of each row is saturated.

    Args:
      folder: is made.
      drawn: (model, steps) -> images in [-1, 1] of the prompts.
      prompts: [N].
      columns: pictures in a strip, at most.
    """
    rows, (height, width) = [], next(iter(drawn.values())).shape[1:3]
    small = max(height, width) <= SMALL
    count = min(len(prompts), columns if small else FEW)
    scale = 1 if small else min(1, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    for (model, steps), images in drawn.items():
        name = f"{model}_{steps}.webp"
        save_webp(_strip(images[:count], size), folder / name, lossless=small)
        at_border = float(np.mean(np.abs(images) >= BORDER))
        rows.append({"model": model, "steps": steps, "file": name, "at_border": at_border})
    shown = {"prompts": list(prompts[:count]), "size": list(size)}
    write_json(folder / ROWS_FILE, {"pictures": len(prompts), **shown, "rows": rows})


def _strip(images: Float[np.ndarray, "N H W C"], size: tuple[int, int]) -> Image.Image:
    """Pictures side by side, each of `size` (width, height)."""
    width, height = size
    canvas = Image.new("RGB", (len(images) * width, height))
    for i, image in enumerate(to_uint8(images)):
        picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)))
        canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), (i * width, 0))
    return canvas
