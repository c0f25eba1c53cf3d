"""Pictures of samples: values, places and files."""

import numpy as np
import pytest
from PIL import Image

from slam_jax import pictures


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

    def half(self, file, format):
        file.write_bytes(before[:10])
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        pictures.save(picture, path)
    assert path.read_bytes() == before
