"""Pictures of samples: values, places and files."""

import json

import numpy as np
import pytest
from PIL import Image

from slam_jax.base.errors import InputError
from slam_jax.drawing import pictures


def test_images_become_bytes():
    values = np.array([-9.0, -1.0, -0.5, 0.0, 1.0, 9.0])
    assert pictures.to_uint8(values).tolist() == [0, 0, 64, 128, 255, 255]


def flat(colour, count):
    """2 x 3 images of one colour, with values in [-1, 1]."""
    return np.broadcast_to(colour, (count, 2, 3, 3))


def pixels_of(colour, picture):
    """(row, column) of every pixel of this colour."""
    return np.argwhere(np.all(np.asarray(picture) == colour, axis=-1))


def test_grid_has_one_picture_per_image_in_its_row():
    rows = {"a": flat([1.0, -1.0, -1.0], 3), "longer name": flat([-1.0, 1.0, -1.0], 2)}
    picture = pictures.grid(rows, scale=4, gap=2)
    first, second = pixels_of([255, 0, 0], picture), pixels_of([0, 255, 0], picture)
    assert len(first) == 3 * (2 * 4) * (3 * 4)
    assert len(second) == 2 * (2 * 4) * (3 * 4)
    assert sorted({int(y) for y, _ in first}) == list(range(2, 10))
    assert sorted({int(y) for y, _ in second}) == list(range(12, 20))
    assert picture.height == 22
    columns = {int(x) for _, x in first}
    left = min(columns)
    assert columns == {left + start + x for start in (0, 14, 28) for x in range(12)}
    assert min(x for _, x in second) == left
    assert picture.width == left + 3 * 14


def test_grid_writes_names_beside_the_pictures():
    rows = {"name": np.ones((1, 8, 8, 1))}
    picture = np.asarray(pictures.grid(rows, scale=4))
    left = picture.shape[1] - (8 * 4 + 4)
    assert picture[:, :left].min() < 100
    assert picture[:, left:].min() == 255


def test_grid_keeps_colours_and_orientation():
    image = np.full((1, 2, 2, 3), -1.0)
    image[0, 0, 1] = [1.0, -1.0, -1.0]  # red at the top right
    picture = np.asarray(pictures.grid({"": image}, scale=1, gap=0))
    assert picture[:, -2:].tolist() == [[[0, 0, 0], [255, 0, 0]], [[0, 0, 0], [0, 0, 0]]]


def test_save_writes_a_png_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "folder" / "picture.png"
    picture = pictures.grid({"a": flat([0.0, 0.5, 1.0], 1)})
    pictures.save(picture, path)
    with Image.open(path) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), np.asarray(picture))
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]

    before = path.read_bytes()

    def half(self, file, format, pnginfo):
        file.write_bytes(before[:10])
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    (path.parent / "picture.tmp").write_text("of somebody else")
    with pytest.raises(InputError, match=r"picture.png: cannot be written: disk full"):
        pictures.save(picture, path)
    assert path.read_bytes() == before
    names = {file.name for file in path.parent.iterdir()}
    assert names == {"picture.png", "picture.tmp"}


def test_a_sheet_keeps_the_order_and_one_picture_is_itself():
    shades = [np.full((2, 3, 1), 40 * i, np.uint8) for i in range(5)]
    sheet = np.asarray(pictures.sheet(shades, columns=3, scale=2, gap=1))
    assert sheet.shape == (1 + 2 * 5, 1 + 3 * 7, 3)
    corners = [(1 + i // 3 * 5, 1 + i % 3 * 7) for i in range(5)]
    assert [int(sheet[corner][0]) for corner in corners] == [0, 40, 80, 120, 160]
    assert np.asarray(pictures.sheet(shades[1:2], columns=3)).shape == (2, 3, 3)


def test_parameters_are_in_the_png(tmp_path):
    pictures.save(Image.new("RGB", (2, 2)), tmp_path / "a.png", {"prompt": "Café", "steps": 4})
    assert json.loads(Image.open(tmp_path / "a.png").text["parameters"]) == {
        "prompt": "Café",
        "steps": 4,
    }


@pytest.mark.parametrize("kind", ["16 bits", "transparent", "palette", "CMYK", "grey", "turned"])
def test_photographs_of_every_kind_are_read_as_they_look(tmp_path, kind):
    grey = np.tile(np.uint8([[0, 100], [200, 255]]).repeat(8, 0).repeat(8, 1)[..., None], 3)
    path, options = tmp_path / "in.png", {}
    picture = Image.fromarray(grey)
    if kind == "16 bits":
        picture = Image.fromarray(grey[..., 0].astype(np.uint16) * 257)
    elif kind == "transparent":
        picture.putalpha(Image.fromarray(np.where(grey[..., 0] == 255, 0, 255).astype(np.uint8)))
    elif kind == "palette":
        picture = picture.quantize(8)
    elif kind == "CMYK":
        picture, path = picture.convert("CMYK"), tmp_path / "in.tif"
    elif kind == "grey":
        picture = picture.convert("L")
    else:
        options["exif"] = picture.getexif()
        options["exif"][0x0112] = 6  # the camera was turned: show it turned clockwise
    picture.save(path, **options)
    expected = np.rot90(grey, -1) if kind == "turned" else grey
    read = pictures.read(path, 16, 16)
    assert read.shape == (16, 16, 3) and read.dtype == np.uint8
    np.testing.assert_allclose(read.astype(int), expected, atol=2)
    assert pictures.read(path, 8, 24).shape == (8, 24, 3)
