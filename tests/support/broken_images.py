"""Contents of image files, made here: broken ones, ones that are not read, and unusual good ones.

Each is made by a function without arguments, always the same bytes.
"""

import struct
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

WIDTH, HEIGHT = 48, 32
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112
NOT_READ, DAMAGED, ANIMATED, LARGE = (
    "not a JPEG, PNG or WebP image",
    "damaged image",
    "animated image",
    "image with too many pixels",
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def smooth(mode: str = "RGB", width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Another colour in each corner, so that turning it shows; what is opaque is in the middle."""
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    rgb = np.stack([255 * x, 255 * y, 255 * (1 - x) * (1 - y)], axis=-1)
    alpha = 255 * (np.hypot(y - 0.5, x - 0.5) < 0.4)
    picture = Image.fromarray(np.uint8(np.dstack([rgb, alpha])))
    if mode in ("RGBA", "LA"):
        return picture.convert(mode)
    return picture.convert("RGB").convert(mode)


def encode(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG by hand.

    Args:
      colour: 0 grey, 2 RGB, 3 palette.
      rows: each with its filter byte.
      more: chunks between header and pixels.
    """
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"".join([PNG_SIGNATURE, header, *more, pixels, chunk(b"IEND", b"")])


def frames(kind: str) -> bytes:
    pictures = [Image.fromarray(noise(16, 16, 3, seed=i)) for i in range(3)]
    return encode(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=40)


def cut(content: bytes, share: float) -> bytes:
    return content[: int(share * len(content))]


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new, 1)


def jpeg(picture: Image.Image | None = None, **options) -> bytes:
    return encode(picture or smooth(), "JPEG", **{"quality": 95, **options})


def noisy(kind: str, **options) -> bytes:
    return encode(Image.fromarray(noise(HEIGHT, WIDTH, 3)), kind, **{"quality": 95, **options})


def oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    return encode(smooth(), kind, exif=exif, **options.get(kind, {}))


def jpeg_of_height(height: int) -> bytes:
    """A JPEG whose header is changed."""
    content = jpeg()
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">H", height) + content[at + 2 :]


def damaged_pixels(kind: str, at: int, **options) -> bytes:
    """All headers are whole, and the pixels make no sense."""
    content = noisy(kind, **options)
    return content[:at] + b"\xff" * 200 + content[at + 200 :]


def with_text(key: str, text: str, **options) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text(key, text, **options)
    return encode(smooth(), pnginfo=info)


def text_bomb() -> bytes:
    """A few kilobytes of PNG text that are 8 MB."""
    return with_text("comment", "0" * (8 << 20), zip=True)


def multi_picture() -> bytes:
    """A JPEG with a preview behind it, as many cameras write them."""
    preview = smooth(width=12, height=8)
    return encode(smooth(), "MPO", save_all=True, append_images=[preview], quality=95)


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


_BLACK = b"\0" + bytes(3 * WIDTH)

# Name -> maker and the reason that it is refused for.
_BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "empty image file"),
    "random bytes": (lambda: noise(5000).tobytes(), NOT_READ),
    "nulls": (lambda: bytes(5000), NOT_READ),
    "HTML": (lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>", NOT_READ),
    "text": (lambda: "the image moved; ¡adiós!\n".encode(), NOT_READ),
    "JSON": (lambda: b'{"error": "AccessDenied"}', NOT_READ),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', NOT_READ),
    "PDF": (lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n", NOT_READ),
    "PSD": (lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3), NOT_READ),
    "GIF": (lambda: encode(smooth("P"), "GIF"), NOT_READ),
    "animated GIF": (lambda: frames("GIF"), NOT_READ),
    "TIFF": (lambda: encode(smooth(), "TIFF"), NOT_READ),
    "BMP": (lambda: encode(smooth(), "BMP"), NOT_READ),
    "ICO": (lambda: encode(smooth(), "ICO"), NOT_READ),
    "AVIF-like": (lambda: b"\0\0\0\x20ftypavif\0\0\0\0" + bytes(64), NOT_READ),
    "JPEG, cut pixels": (lambda: cut(noisy("JPEG"), 0.6), DAMAGED),
    "JPEG, cut header": (lambda: noisy("JPEG")[:60], DAMAGED),
    "JPEG, only its first bytes": (lambda: noisy("JPEG")[:4], DAMAGED),
    "JPEG of height 0": (partial(jpeg_of_height, 0), DAMAGED),
    "CMYK JPEG": (lambda: jpeg(smooth("CMYK")), "image with CMYK pixels"),
    "PNG, cut pixels": (lambda: cut(noisy("PNG"), 0.6), DAMAGED),
    "PNG, cut header": (lambda: noisy("PNG")[:20], DAMAGED),
    "PNG, only its signature": (lambda: PNG_SIGNATURE, DAMAGED),
    "PNG, damaged pixels": (partial(damaged_pixels, "PNG", 2000), DAMAGED),
    "PNG, wrong CRC of the header": (
        lambda: changed(noisy("PNG"), struct.pack(">I", WIDTH), struct.pack(">I", WIDTH + 1)),
        DAMAGED,
    ),
    "PNG of width 0": (lambda: png(0, HEIGHT, 8, 2, b"\0" * HEIGHT), DAMAGED),
    "PNG without pixels": (
        lambda: changed(noisy("PNG"), b"IDAT", b"junk"),
        DAMAGED,
    ),
    "PNG with a text bomb": (text_bomb, DAMAGED),
    "16-bit grey PNG": (
        lambda: encode(Image.fromarray(noise(HEIGHT, WIDTH).astype(np.uint16) * 257)),
        "image with I;16 pixels",
    ),
    "PNG of 30000x30000": (lambda: png(30000, 30000, 8, 2, _BLACK), LARGE),
    "PNG of 12000x10000": (lambda: png(12000, 10000, 8, 2, _BLACK), LARGE),
    "APNG": (lambda: frames("PNG"), ANIMATED),
    "WebP, cut pixels": (lambda: cut(noisy("WEBP"), 0.6), DAMAGED),
    "WebP, cut header": (lambda: noisy("WEBP")[:18], DAMAGED),
    "lossless WebP, damaged pixels": (partial(damaged_pixels, "WEBP", 30, lossless=True), DAMAGED),
    "animated WebP": (lambda: frames("WEBP"), ANIMATED),
}
BROKEN: dict[str, Callable[[], bytes]] = {name: maker for name, (maker, _) in _BROKEN.items()}
REASONS: dict[str, str] = {name: reason for name, (_, reason) in _BROKEN.items()}
# Those that only decoding finds: their headers are whole, and `read_size` gives a size.
WHOLE_HEADERS = (
    "JPEG, cut pixels",
    "PNG, cut pixels",
    "PNG, damaged pixels",
    "lossless WebP, damaged pixels",
)

GOOD: dict[str, Callable[[], bytes]] = {
    "JPEG": jpeg,
    "progressive JPEG": lambda: jpeg(progressive=True),
    "grey JPEG": lambda: jpeg(smooth("L")),
    "JPEG, 4:2:0": lambda: jpeg(subsampling=2),
    "JPEG with trailing garbage": lambda: jpeg() + noise(999).tobytes(),
    "JPEG with a preview": multi_picture,
    "JPEG with a profile": lambda: jpeg(icc_profile=profile()),
    "JPEG with garbage as EXIF": lambda: jpeg(exif=b"Exif\0\0" + noise(300).tobytes()),
    "JPEG with cut EXIF": lambda: jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03"),
    "JPEG with a comment": lambda: jpeg(comment="¿qué?".encode("latin-1")),
    "1x1 JPEG": lambda: jpeg(smooth(width=1, height=1)),
    "very wide JPEG": lambda: jpeg(smooth(width=4000, height=3)),
    "PNG": lambda: encode(smooth()),
    "1x1 PNG": lambda: encode(smooth(width=1, height=1)),
    "very tall PNG": lambda: encode(smooth(width=2, height=4000)),
    "grey PNG": lambda: encode(smooth("L")),
    "1-bit PNG": lambda: encode(smooth("1")),
    "palette PNG": lambda: encode(smooth("P")),
    "palette PNG with transparency": lambda: encode(smooth("P"), transparency=3),
    "palette PNG with alpha": lambda: encode(smooth("P"), transparency=bytes(range(256))),
    "RGB PNG with a transparent colour": lambda: encode(smooth(), transparency=(0, 0, 255)),
    "RGBA PNG": lambda: encode(smooth("RGBA")),
    "grey PNG with alpha": lambda: encode(smooth("LA")),
    "16-bit RGB PNG": lambda: png(8, 4, 16, 2, (b"\0" + noise(48).tobytes()) * 4),
    "PNG with a profile": lambda: encode(smooth(), icc_profile=profile()),
    "PNG with a text of the name exif": lambda: with_text("exif", "none", zip=True),
    "PNG with trailing garbage": lambda: encode(smooth()) + noise(999).tobytes(),
    "lossy WebP": lambda: encode(smooth(), "WEBP", quality=95),
    "lossless WebP": lambda: encode(smooth(), "WEBP", lossless=True),
    "lossy WebP with alpha": lambda: encode(smooth("RGBA"), "WEBP", quality=95),
    "lossless WebP with alpha": lambda: encode(smooth("RGBA"), "WEBP", lossless=True),
    "1x1 WebP": lambda: encode(smooth(width=1, height=1), "WEBP"),
    **{f"JPEG, orientation {i}": partial(oriented, "JPEG", i) for i in range(1, 9)},
    **{f"{kind}, orientation 6": partial(oriented, kind, 6) for kind in ("PNG", "WEBP")},
    "JPEG, orientation 9": partial(oriented, "JPEG", 9),
}
