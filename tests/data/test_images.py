"""Image files against closed forms and Pillow's own ways, and against damage of all kinds."""

import threading
from io import BytesIO

import numpy as np
import pytest
from broken_images import (
    BROKEN,
    GOOD,
    HEIGHT,
    REASONS,
    WHOLE_HEADERS,
    WIDTH,
    encode,
    noise,
    oriented,
    png,
    smooth,
)
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from slam_jax.data import images
from slam_jax.data.rejects import Rejected


def pixels(content, **options):
    return np.asarray(images.decode(content, "x", **options), np.int64)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_rejected_with_their_reason(name, capfd):
    content = BROKEN[name]()
    with pytest.raises(Rejected) as caught:
        images.decode(content, "00003/000123")
    assert caught.value.reason == REASONS[name]
    assert caught.value.name == "00003/000123" and not caught.value.asked_for
    if name in WHOLE_HEADERS:
        assert images.read_size(content, name) == (HEIGHT, WIDTH)
    else:
        with pytest.raises(Rejected, match=REASONS[name]):
            images.read_size(content, name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", GOOD)
def test_unusual_files_are_read_as_pillow_shows_them(name, capfd):
    content = GOOD[name]()
    picture = images.decode(content, name)
    assert picture.mode == "RGB"
    assert images.read_size(content, name) == picture.size[::-1]
    if "EXIF" in name or "exif" in name:  # which `exif_transpose` trips over
        assert capfd.readouterr() == ("", "")
        return
    with Image.open(BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGBA")
    white = Image.new("RGB", expected.size, "white")
    white.paste(expected, mask=expected.getchannel("A"))  # another way to compose
    np.testing.assert_allclose(np.asarray(picture), np.asarray(white, np.int64), rtol=0, atol=1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation, kind):
    """EXIF's definition: where the file's first row and first column are seen."""
    stored = np.asarray(smooth(), np.int64)
    rows_down, columns_right, swapped = {  # as is, or reversed; rows are seen as columns from 5 on
        1: (1, 1, False),
        2: (1, -1, False),
        3: (-1, -1, False),
        4: (-1, 1, False),
        5: (1, 1, True),
        6: (-1, 1, True),
        7: (-1, -1, True),
        8: (1, -1, True),
    }[orientation]
    expected = stored[::rows_down, ::columns_right]
    expected = expected.transpose(1, 0, 2) if swapped else expected
    content = oriented(kind, orientation)
    np.testing.assert_allclose(pixels(content), expected, rtol=0, atol=12)  # JPEG's error
    assert images.read_size(content, "x") == expected.shape[:2]
    half = (np.array(expected.shape[:2]) // (2 if kind == "JPEG" else 1)).tolist()
    assert pixels(content, shorter=8).shape == (*half, 3)


def test_big_endian_exif_without_its_prefix_orients_a_webp():
    exif = b"MM\0*\0\0\0\x08" + b"\0\1" + b"\1\x12\0\3\0\0\0\1\0\6\0\0" + bytes(4)
    assert images.read_size(encode(smooth(), "WEBP", exif=exif), "x") == (WIDTH, HEIGHT)


def test_transparency_becomes_white():
    half = np.zeros((4, 4, 4), np.uint8)
    half[..., 0], half[..., 3] = 200, [0, 51, 102, 255]
    expected = 255 + np.array([0, 0.2, 0.4, 1])[:, None] * (np.array([200, 0, 0]) - 255)
    seen = pixels(encode(Image.fromarray(half)))
    np.testing.assert_allclose(seen, np.broadcast_to(expected, (4, 4, 3)), rtol=0, atol=1)


def test_palette_transparency_becomes_white():
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.putdata([0, 1, 2])
    one = pixels(encode(picture, transparency=1))
    assert one.tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    some = pixels(encode(picture, transparency=bytes([0, 255])))
    assert some.tolist() == [[[255, 255, 255], [40, 50, 60], [70, 80, 90]]]


def test_16_bit_colours_keep_their_high_bytes():
    levels = noise(4, 8, 3).astype(">u2") * 256 + noise(4, 8, 3, seed=1)
    rows = b"".join(b"\0" + row.tobytes() for row in levels.astype(">u2"))
    assert pixels(png(8, 4, 16, 2, rows)).tolist() == (levels // 256).tolist()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("shorter", "expected"), [(None, 512), (300, 512), (256, 512), (128, 256), (127, 256), (32, 64)]
)
def test_a_jpeg_comes_smaller_by_what_leaves_twice_the_size(shorter, expected, mode):
    content = encode(smooth(mode, width=701, height=512), "JPEG", quality=95)
    picture = images.decode(content, "x", shorter)
    assert picture.size == (-(-701 * expected // 512), expected)
    whole = images.decode(content, "x").resize(picture.size, Image.Resampling.BOX)
    difference = np.abs(np.asarray(picture, np.int64) - np.asarray(whole, np.int64))
    assert difference.mean() < 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_only_a_jpeg_comes_smaller(kind):
    picture = smooth(width=128, height=128)
    assert pixels(encode(picture, kind), shorter=4).shape == (128, 128, 3)


def test_the_limit_of_pixels_is_that_of_256_mib():
    side = 9459
    assert 3 * side**2 <= 2**28 < 3 * side * (side + 1)
    row = b"\0" + bytes(side // 8 + 1)
    assert images.read_size(png(side, side, 1, 0, row), "x") == (side, side)
    with pytest.raises(Rejected, match="too many pixels"):
        images.read_size(png(side + 1, side, 1, 0, row), "x")


def test_a_large_webp_is_refused():
    # A canvas of 16384 x 16384 around a small picture.
    content = encode(smooth("RGBA"), "WEBP", exif=b"Exif\0\0")
    at = content.index(b"VP8X") + 12
    large = content[:at] + (16383).to_bytes(3, "little") * 2 + content[at + 6 :]
    # Pillow before 13 finds that the two sizes differ.
    with pytest.raises(Rejected, match="too many pixels|damaged image"):
        images.read_size(large, "x")


@pytest.mark.parametrize("name", ["JPEG", "PNG", "lossy WebP", "APNG", "animated WebP"])
def test_the_size_is_read_without_the_pixels(name, monkeypatch):
    for kind in (JpegImageFile, PngImageFile, WebPImageFile):
        monkeypatch.setattr(kind, "load", lambda image: pytest.fail("decoded"))
    if name in BROKEN:
        with pytest.raises(Rejected, match="animated image"):
            images.read_size(BROKEN[name](), "x")
    else:
        assert images.read_size(GOOD[name](), "x") == (HEIGHT, WIDTH)


def test_whatever_the_damage_only_rejected_is_raised(capfd):
    random = np.random.default_rng(0)
    seeds = [maker() for name, maker in GOOD.items() if "very" not in name]
    read = rejected = 0
    for content in seeds:
        for attempt in range(24):
            damaged = np.frombuffer(content, np.uint8).copy()
            where = random.integers(len(damaged), size=1 + attempt % 4)
            if attempt % 2:  # headers are where it matters
                where %= 100
            damaged[where % len(damaged)] = random.integers(256, size=len(where))
            if attempt % 6 == 0:
                damaged = damaged[: random.integers(len(damaged))]
            for function in (images.read_size, images.decode):
                try:
                    function(damaged.tobytes(), "x")
                    read += 1
                except Rejected:
                    rejected += 1
    assert read > 300 and rejected > 300
    assert capfd.readouterr() == ("", "")


def test_many_threads_read_the_same():
    contents = {name: maker() for name, maker in GOOD.items() if "very" not in name}
    expected = {name: pixels(content).tolist() for name, content in contents.items()}
    wrong = []

    def read():
        for name, content in contents.items():
            if pixels(content).tolist() != expected[name]:
                wrong.append(name)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
