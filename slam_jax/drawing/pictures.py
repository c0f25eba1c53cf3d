"""Picture files: grids of images with a name beside each row, contact sheets, PNGs that say how
they were made, and photographs to start from."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from slam_jax.base.errors import InputError
from slam_jax.base.files import unfinished

SMALLEST = 40  # pixels on a side; smaller pictures are enlarged


def to_uint8(images: Float[np.ndarray, "... H W C"]) -> np.ndarray:
    """Images in [-1, 1] as uint8."""
    return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


def grid(
    rows: Mapping[str, Float[np.ndarray, "N H W C"]], scale: int | None = None, gap: int = 4
) -> Image.Image:
    """One row of pictures per entry, its name on the left.

    Args:
      rows: name -> images in [-1, 1]; the same H, W and C (1 or 3) everywhere.
      scale: each pixel becomes a square of this many; None: of so many that small ones are seen.
      gap: pixels between pictures.
    """
    pen = ImageDraw.Draw(Image.new("L", (1, 1)))
    margin = 8 + max(int(pen.textlength(name)) for name in rows)
    canvas = _in_rows([list(to_uint8(images)) for images in rows.values()], scale, gap, margin)
    pen, height = ImageDraw.Draw(canvas), (canvas.height - gap) // len(rows)
    for r, name in enumerate(rows):
        middle = gap + r * height + (height - gap) // 2
        pen.text((4, middle), name, fill="black", anchor="lm")
    return canvas


def sheet(
    images: Sequence[UInt8[np.ndarray, "H W C"]],
    columns: int,
    scale: int | None = 1,
    gap: int = 4,
) -> Image.Image:
    """Pictures in rows of `columns`; one picture alone is itself.

    Args:
      images: one or more, all of one shape, C is 1 or 3.
      columns: pictures in a row.
      scale, gap: as for `grid`.
    """
    if len(images) == 1:
        return _enlarged(images[0], scale)
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    return _in_rows(rows, scale, gap, gap)


def _in_rows(
    rows: Sequence[Sequence[UInt8[np.ndarray, "H W C"]]], scale: int | None, gap: int, left: int
) -> Image.Image:
    pictures = [[_enlarged(image, scale) for image in row] for row in rows]
    width, height = (side + gap for side in pictures[0][0].size)
    size = (left + max(map(len, rows)) * width, gap + len(rows) * height)
    canvas = Image.new("RGB", size, "white")
    for r, row in enumerate(pictures):
        for c, picture in enumerate(row):
            canvas.paste(picture, (left + c * width, gap + r * height))
    return canvas


def _enlarged(image: UInt8[np.ndarray, "H W C"], scale: int | None) -> Image.Image:
    picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    scale = scale or max(1, SMALLEST // picture.height)
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
        eight_bits = np.round(sixteen_bits / 257).clip(0, 255).astype(np.uint8)
        return Image.fromarray(eight_bits).convert("RGB")
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
    _save(picture, path, format="PNG", pnginfo=info)


def as_png(picture: Image.Image) -> bytes:
    """The contents of a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def save_webp(picture: Image.Image, path: Path, lossless: bool) -> None:
    """Writes a WebP whole or not at all.

    Raises:
      InputError: it cannot be written there.
    """
    _save(picture, path, format="WEBP", lossless=lossless, quality=80)


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(path) as beside:
            picture.save(beside, **options)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
