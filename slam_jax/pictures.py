"""Pictures of samples: a grid of images with a name beside each row."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw


def to_uint8(images: Float[np.ndarray, "... H W C"]) -> np.ndarray:
    """Images in [-1, 1] as uint8."""
    return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


def grid(
    rows: Mapping[str, Float[np.ndarray, "N H W C"]], scale: int = 5, gap: int = 4
) -> Image.Image:
    """One row of pictures per entry, its name on the left.

    Args:
      rows: name -> images in [-1, 1]; the same H, W and C (1 or 3) everywhere.
      scale: each pixel becomes a square of this many.
      gap: pixels between pictures.
    """
    first = next(iter(rows.values()))
    height, width = (size * scale for size in first.shape[1:3])
    margin = 8 + max(int(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(name)) for name in rows)
    columns = max(len(images) for images in rows.values())
    size = (margin + columns * (width + gap), gap + len(rows) * (height + gap))
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for r, (name, images) in enumerate(rows.items()):
        top = gap + r * (height + gap)
        pen.text((4, top + height // 2), name, fill="black", anchor="lm")
        for c, image in enumerate(to_uint8(images)):
            picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)))
            canvas.paste(
                picture.resize((width, height), Image.Resampling.NEAREST),
                (margin + c * (width + gap), top),
            )
    return canvas


def save(picture: Image.Image, path: Path) -> None:
    """Writes a PNG whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    picture.save(unfinished, format="PNG")
    unfinished.replace(path)
