"""Smooth coloured pictures in files, the same on every machine: whole numbers all the way."""

import numpy as np
from PIL import Image

SHAPES = ((96, 128), (150, 100))  # height, width
CELL = 25  # pixels between two points of the grid that a picture is drawn through


def pictures(seed, count, low, high):
    """Of each shape `count` of them, uint8 [H, W, 3], the shapes one after the other.

    Args:
        seed: of their colours.
        count: pictures of a shape.
        low, high: a grid's colours lie in [low, high).
    """
    random = np.random.RandomState(seed)
    for height, width in SHAPES:
        for _ in range(count):
            grid = random.randint(low, high, (height // CELL + 2, width // CELL + 2, 3))
            rows = _between(grid, height)
            noise = random.randint(-8, 9, (height, width, 3))
            smooth = _between(rows.swapaxes(0, 1), width).swapaxes(0, 1) // CELL**2
            yield np.clip(smooth + noise, 0, 255).astype(np.uint8)


def _between(points, length):
    """CELL times the values between neighbouring points along the first axis."""
    place, share = np.divmod(np.arange(length), CELL)
    share = share.reshape(-1, 1, 1)
    return (CELL - share) * points[place] + share * points[place + 1]


def write_two_sets(folder, count):
    """Writes PNGs into folder/drawn and folder/real, those drawn a little paler.

    Args:
        folder: an existing one.
        count: pictures of a shape, in each set.
    """
    for name, *kind in (("drawn", 1, 40, 246), ("real", 2, 0, 256)):
        (folder / name).mkdir()
        for index, image in enumerate(pictures(kind[0], count, *kind[1:])):
            Image.fromarray(image).save(folder / name / f"{index:05d}.png")
    return folder / "drawn", folder / "real"
