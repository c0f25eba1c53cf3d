"""Resizing against the programs that it repeats: golden files of clean-fid, torch-fidelity and
torchvision (golden/make_resize.py), Pillow, and transformers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slam_jax.base.errors import InputError
from slam_jax.features import resize

GOLDEN = Path(__file__).parent / "golden"
SHAPES = ((64, 64), (37, 53), (90, 44), (31, 28), (32, 29), (299, 299), (330, 411), (512, 512))
EVERY = 13
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "resize.npz") as arrays:
        return dict(arrays)


def picture(height, width):
    """As in make_resize.py."""
    y, x, c = np.mgrid[:height, :width, :3]
    return ((y * y * 3 + x * y * 7 + x * 11 + c * 85) % 256).astype(np.uint8)


def untouched(function, image, size):
    """Calls it with what may not be written to, as pictures read ahead may be shared."""
    image.flags.writeable = False
    return function(image, size)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["clean", "tensorflow1"])
def test_inceptions_inputs_are_those_of_clean_fid_and_torch_fidelity(golden, name, shape):
    for size, step in ((299, EVERY), (20, 1)):
        resized = untouched(getattr(resize, name), picture(*shape), size)
        assert resized.dtype == np.float32 and resized.shape == (size, size, 3)
        expected = golden[f"{name}_{size}_{shape[0]}x{shape[1]}"]
        # The same for `tensorflow1`; Pillow 10.4 and 13 differ in the last bit.
        np.testing.assert_allclose(
            resized[::step, ::step], expected, rtol=0, atol=2e-5 if name == "clean" else 0
        )


def test_clean_is_clipped_and_not_rounded():
    resized = resize.clean(picture(64, 64), 299)
    assert resized.min() == 0 and resized.max() == 255
    assert (resized % 1 != 0).mean() > 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_crops_are_torchvisions(golden, shape):
    key = f"{shape[0]}x{shape[1]}"
    image = picture(*shape)
    squares = untouched(resize.center_crop_lanczos, image, 20)
    assert squares.dtype == np.uint8
    np.testing.assert_array_equal(squares, golden[f"center_crop_lanczos_20_{key}"])
    np.testing.assert_array_equal(resize.center_crop(image, 28), golden[f"center_crop_28_{key}"])


@pytest.mark.parametrize("shape", [(40, 40), (300, 300), (512, 512)], ids=str)
def test_a_square_picture_is_resized_by_lanczos(shape):
    image = picture(*shape)
    expected = Image.fromarray(image).resize((256, 256), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(resize.center_crop_lanczos(image, 256), np.asarray(expected))


def test_a_picture_smaller_than_the_patch_is_refused():
    with pytest.raises(InputError, match="298 x 400 pixels: expected at least 299 x 299"):
        resize.center_crop(picture(400, 298), 299)
    assert resize.center_crop(picture(299, 299), 299).shape == (299, 299, 3)


@pytest.mark.slow  # the first one imports torch
@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (37, 53), (481, 640), (640, 427)], ids=str)
def test_clip_sees_what_transformers_gives_it(shape, size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    published = {  # preprocessor_config.json of openai/clip-vit-large-patch14-336
        "crop_size": size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": 3,
        "size": size,
    }
    image = picture(*shape)
    expected = CLIPImageProcessorPil(**published)(Image.fromarray(image), return_tensors="np")
    resized = untouched(resize.clip, image, size)
    assert resized.dtype == np.float32 and resized.shape == (size, size, 3)
    np.testing.assert_allclose(
        resized, expected["pixel_values"][0].transpose(1, 2, 0), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(64, 64), (37, 52), (481, 640), (640, 427)], ids=str)
def test_cmmd_crops_before_it_resizes(shape):
    """As google-research's cmmd/io_util.py and embedding.py, in float64."""
    image = picture(*shape)
    height, width = shape
    side = min(shape)
    left, top = (width - side) // 2, (height - side) // 2
    square = Image.fromarray(image).crop((left, top, left + side, top + side))
    pixels = np.asarray(square.resize((336, 336), resample=Image.Resampling.BICUBIC))
    resized = untouched(resize.cmmd, image, 336)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, (pixels / 255 - MEAN) / STD, rtol=0, atol=1e-6)
    same = np.abs(resized - resize.clip(image, 336)).max() < 1e-6
    assert same == (height == width)


def test_the_golden_files_were_made_of_these_pictures():
    """The script needs programs that are not here; its pictures and shapes do not."""
    source = (GOLDEN / "make_resize.py").read_text()
    assert f"SHAPES = {SHAPES}" in source and f"EVERY = {EVERY}" in source
