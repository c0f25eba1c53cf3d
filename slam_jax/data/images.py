"""Contents of image files become RGB pictures, or a reason why not."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from slam_jax.data.rejects import Rejected

# Files of other formats under these names are counted as such.
EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "heic", "heif"),
    *("avif", "jp2", "jxl", "ico", "svg"),
)
FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 2**28 // 3  # 256 MiB as RGB; Pillow's own limit
# Kinds of pixels that become RGB without a guess; CMYK would need a colour profile, and 16-bit
# greys a choice of what is white.
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
SIDEWAYS = (5, 6, 7, 8)  # EXIF's orientations that swap height and width
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Of what is passed over and counted here, and of damaged EXIF, which web images are full of.
warnings.filterwarnings("ignore", module=r"PIL\.")


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
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        picture = image.convert("RGB")
        return picture.transpose(turn) if turn is not None else picture


@contextmanager
def _opened(content: bytes, name: str) -> Iterator[ImageFile]:
    """Turns whatever a damaged file leads to into a reason."""
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            # A JPEG that has a preview is no animation.
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise Rejected("animated image", name)
            if image.mode not in MODES:
                raise Rejected(f"image with {image.mode} pixels", name)
            if image.width * image.height > MAX_PIXELS:
                raise Rejected("image with too many pixels", name)
            yield image
    except Rejected:
        raise
    except Image.DecompressionBombError as error:
        raise Rejected("image with too many pixels", name) from error
    # Pillow's decoders raise whatever a damaged file leads them to.
    except Exception as error:
        raise Rejected(_reason(content), name) from error


def _reason(content: bytes) -> str:
    if not content:
        return "empty image file"
    is_webp = content.startswith(b"RIFF") and content[8:12] == b"WEBP"
    if is_webp or content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return "damaged image"
    return "not a JPEG, PNG or WebP image"


def _orientation(image: ImageFile) -> int:
    """EXIF's, as far as it comes ahead of the pixels; 1, upright, where it is missing or damaged.

    A PNG's `getexif` would decode the pixels.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return exif.get(ExifTags.Base.Orientation, 1)
    # Pillow's parser raises whatever damage leads it to.
    except Exception:
        return 1
