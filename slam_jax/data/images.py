"""Contents of image files become RGB pictures, or a reason why not."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from slam_jax.data.rejects import Rejected

# Files of other formats under these names are counted as such.
EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "heic", "heif"),
    *("avif", "jp2", "jxl", "ico", "svg"),
)
MAX_PIXELS = 2**28 // 3  # 256 MiB as RGB; Pillow's own limit
# Kinds of pixels that become RGB without a guess; CMYK would need a colour profile, and 16-bit
# greys a choice of what is white.
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
ORIENTATION = 0x0112  # EXIF's tag
SIDEWAYS = (5, 6, 7, 8)  # its values that swap height and width
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_size(content: bytes, name: str) -> tuple[int, int]:
    """Height and width, in pixels, as the picture is looked at; of the file's headers only.

    Raises:
      Rejected: it is not a picture that `decode` would take, as far as its headers tell.
    """
    with _opened(content, name) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in SIDEWAYS else (height, width)


def decode(content: bytes, name: str, shorter: int | None = None) -> Image.Image:
    """The picture in RGB, upright; what is transparent becomes white.

    Args:
      content: of a JPEG, PNG or WebP file.
      name: the example's.
      shorter: a JPEG may come smaller by 2, 4 or 8 than it is, which is faster, while its shorter
        side keeps twice this many pixels.

    Raises:
      Rejected: it is damaged, animated, or of a kind that is not read.
    """
    with _opened(content, name) as image:
        turn = TURNS.get(_orientation(image))
        if shorter:
            image.draft("RGB", (2 * shorter, 2 * shorter))
        image.load()
        picture = _on_white(image, content)
        return picture.transpose(turn) if turn is not None else picture


@contextmanager
def _opened(content: bytes, name: str) -> Iterator[ImageFile]:
    """Turns whatever a damaged file leads to into a reason."""
    if not content:
        raise Rejected("empty image file", name)
    reader = _find_reader(content)
    if reader is None:
        raise Rejected("not a JPEG, PNG or WebP image", name)
    # Pillow would warn of an animation without frames. Chunks of pixels come after this one.
    animated = reader is PngImageFile and content.find(b"acTL", 0, content.find(b"IDAT")) > 0
    try:
        if animated:
            raise Rejected("animated image", name)
        # Not with Image.open, which warns of large pictures before they can be refused, and takes
        # a JPEG that has a preview for an animation.
        with reader(BytesIO(content)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Rejected("image with too many pixels", name)
            if getattr(image, "is_animated", False):
                raise Rejected("animated image", name)
            if image.mode not in MODES:
                raise Rejected(f"image with {image.mode} pixels", name)
            yield image
    except Rejected:
        raise
    except Image.DecompressionBombError as error:
        raise Rejected("image with too many pixels", name) from error
    # Pillow's decoders raise whatever a damaged file leads them to.
    except Exception as error:
        raise Rejected("damaged image", name) from error


class _Jpeg(JpegImageFile):
    def getexif(self) -> Image.Exif:
        """None: Pillow looks there for the resolution in print, and warns of any damage."""
        return Image.Exif()


def _find_reader(content: bytes) -> type[ImageFile] | None:
    if content.startswith(b"\xff\xd8\xff"):
        return _Jpeg
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return WebPImageFile
    return None


def _orientation(image: ImageFile) -> int:
    """EXIF's, as far as it comes ahead of the pixels; 1, upright, where it is missing or damaged.

    Pillow's own reading parses all other tags too, and warns of those that are damaged.
    """
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):  # a PNG may have a text of that name
        return 1
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(count):
            tag, value = struct.unpack_from(f"{order}H6xH", exif, start + 2 + 12 * entry)
            if tag == ORIENTATION:
                return value
    except struct.error:  # it ends before
        pass
    return 1


def _on_white(image: ImageFile, content: bytes) -> Image.Image:
    """RGB; what is transparent becomes white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    transparent = image.info.get("transparency")
    if image.format == "PNG" and image.mode != "P" and transparent is not None:
        # One colour, in the file's bits; Pillow compares it with 8-bit pixels.
        white = 2 ** content[24] - 1
        if isinstance(transparent, tuple):
            image.info["transparency"] = tuple(level * 255 // white for level in transparent)
        else:
            image.info["transparency"] = transparent * 255 // white
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
