"""Picture files: grids of images with a name beside each row, contact sheets, PNGs that say how
they were made, and photographs to start from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from slam_jax.base.errors import InputError
from slam_jax.base.files import unfinished


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
            canvas.paste(_enlarged(image, scale), (margin + c * (width + gap), top))
    return canvas


def sheet(
    images: Sequence[UInt8[np.ndarray, "H W C"]], columns: int, scale: int = 1, gap: int = 4
) -> Image.Image:
    """Pictures in rows of `columns`; one picture alone is itself.

    Args:
      images: one or more, all of one shape, C is 1 or 3.
      columns: pictures in a row.
      scale: each pixel becomes a square of this many.
      gap: pixels between pictures.
    """
    if len(images) == 1:
        return _enlarged(images[0], scale)
    height, width = (size * scale + gap for size in images[0].shape[:2])
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (gap + columns * width, gap + rows * height), "white")
    for i, image in enumerate(images):
        corner = (gap + i % columns * width, gap + i // columns * height)
        canvas.paste(_enlarged(image, scale), corner)
    return canvas


def _enlarged(image: UInt8[np.ndarray, "H W C"], scale: int) -> Image.Image:
    picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    size = (picture.width * scale, picture.height * scale)
    return picture.resize(size, Image.Resampling.NEAREST)


def read(path: Path, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """A photograph in the given size: scaled to cover it, then its centre.

    Raises:
      InputError: the file is missing or no picture.
    """
    try:
        with Image.open(path) as picture:
            upright = _as_rgb(ImageOps.exif_transpose(picture))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as a picture: {error}") from error
    return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))


def _as_rgb(picture: Image.Image) -> Image.Image:
    """8 bits and three channels; what is transparent becomes white."""
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip and not scale
        sixteen_bits = np.asarray(picture, np.float64)
        return Image.fromarray(np.uint8(np.round(sixteen_bits / 257).clip(0, 255))).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def save(picture: Image.Image, path: Path, parameters: Mapping[str, Any] | None = None) -> None:
    """Writes a PNG whole or not at all; `parameters` go into its text chunk of that name, as JSON.

    Raises:
      InputError: it cannot be written there.
    """
    info = PngImagePlugin.PngInfo()
    if parameters is not None:
        info.add_text("parameters", json.dumps(parameters))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(path) as beside:
            picture.save(beside, format="PNG", pnginfo=info)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
