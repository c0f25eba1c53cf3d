"""From an image with captions to an example: crops, flips, captions, and what is passed over."""

from contextlib import closing
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from slam_jax.base.errors import InputError
from slam_jax.data import photographs
from slam_jax.data.batches import Batches
from slam_jax.data.examples import Example
from slam_jax.data.image_text import ImageText, Transform
from slam_jax.data.rejects import Rejects

CHINA, CAT = 0, list(photographs.CAPTIONS).index("chelsea")


class Files:
    """JPEG files of random pictures, each with the captions "<i>a" and "<i>b"; some are cut off."""

    name = "files"

    def __init__(self, count, damaged=()):
        self.identity, self.rejects, self.files = f"{count}", Rejects(), []
        for i in range(count):
            noise = np.random.default_rng(i).integers(0, 256, (4, 6 + i % 3, 3), dtype=np.uint8)
            file = BytesIO()
            Image.fromarray(noise).resize((70 + i, 50), Image.Resampling.BICUBIC).save(file, "JPEG")
            content = file.getvalue()
            self.files.append(content[: len(content) // 2] if i in damaged else content)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return Example(f"file {index}", self.files[index], (f"{index}a", f"{index}b"))


def numbers_of(texts):
    """Tokens that tell the texts apart: "12b" -> [12, 1], "" -> [-1, -1]."""
    return np.array([[int(t[:-1]), t[-1] == "b"] if t else [-1, -1] for t in texts])


def read(transform, indices, seeds, examples=None):
    source = ImageText(examples or Files(12), transform, numbers_of)
    return source.read(np.array(indices), np.array(seeds))[0]


def photograph(index):
    return photographs.Photographs()[index]


def test_a_crop_of_the_full_height_is_a_piece_of_the_photograph():
    example = photograph(CAT)  # 300 x 451: not resized
    for place, left in ((0.0, 0), (0.5, 76), (0.9999, 151)):
        crop = Transform(300).cut(example, place)
        assert crop.time_ids.tolist() == [300, 451, 0, left, 300, 300]
        np.testing.assert_array_equal(crop.image, example.image[:, left : left + 300])
    assert crop.image.dtype == np.uint8 and crop.time_ids.dtype == np.float32


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("resolution", [64, 200, 512])
def test_a_crop_is_what_resizing_the_whole_and_cropping_gives(turned, resolution):
    photo = photograph(CHINA).image  # 427 x 640
    photo = photo.transpose(1, 0, 2) if turned else photo
    crop = Transform(resolution).cut(Example("china", photo, ("",)), place=0.3)
    longer = round(640 * resolution / 427)
    shape = (resolution, longer) if turned else (longer, resolution)
    whole = np.asarray(Image.fromarray(photo).resize(shape, Image.Resampling.BICUBIC))
    top, left = crop.time_ids[2:4].astype(int)
    assert {top, left} == {0, int(0.3 * (longer - resolution + 1))}
    expected = whole[top : top + resolution, left : left + resolution].astype(float)
    # At the crop's rim the filter does not see what is beyond it.
    error = np.abs(expected - crop.image)[4:-4, 4:-4]
    assert error.mean() < 0.5 and np.quantile(error, 0.999) <= 4


def test_a_large_jpeg_that_is_decoded_smaller_looks_as_if_it_were_not():
    photo = Image.fromarray(photograph(CHINA).image).resize((1280, 854))
    file = BytesIO()
    photo.save(file, "JPEG", quality=95)
    crop = Transform(64).cut(Example("china", file.getvalue(), ("",)))
    decoded = np.asarray(Image.open(file).convert("RGB"))
    plain = Transform(64).cut(Example("china", decoded, ("",)))
    np.testing.assert_array_equal(crop.time_ids, plain.time_ids)
    assert 0 < np.abs(crop.image.astype(float) - plain.image).mean() < 2


@pytest.mark.parametrize("place", [0.0, 0.37, 0.8])
def test_a_mirrored_crop_is_the_crop_of_the_mirrored_photograph(place):
    transform, photo = Transform(100), photograph(CHINA).image
    mirrored = transform.mirror(transform.cut(Example("", photo, ("",)), place))
    left = int(mirrored.time_ids[3])
    whole = ImageOps.mirror(Image.fromarray(photo)).resize((150, 100), Image.Resampling.BICUBIC)
    expected = np.asarray(whole)[:, left : left + 100].astype(float)
    assert np.abs(expected - mirrored.image)[4:-4, 4:-4].mean() < 0.5
    assert transform.mirror(mirrored).time_ids[3] == int(place * 51)


def test_half_of_the_examples_are_mirrored_where_asked():
    seeds = np.arange(200)
    plain, flipped = (read(Transform(48, flip=flip), seeds * 0, seeds) for flip in (False, True))
    same = (plain["images"] == flipped["images"]).all(axis=(1, 2, 3))
    mirrored = (plain["images"] == flipped["images"][:, :, ::-1]).all(axis=(1, 2, 3))
    assert np.all(same ^ mirrored) and 70 < mirrored.sum() < 130
    np.testing.assert_array_equal(plain["tokens"], flipped["tokens"])


def test_random_crops_are_everywhere_and_central_ones_in_the_middle():
    random, central = (
        read(Transform(48, crop=crop), np.zeros(300, int), np.arange(300))["time_ids"][:, 3]
        for crop in ("random", "center")
    )
    assert set(random) == set(range(20))  # 50 x 70 becomes 48 x 67
    assert set(central) == {10}


def test_captions_are_chosen_among_several_or_the_first():
    indices, seeds = np.full(400, 5), np.arange(400)
    random = read(Transform(48), indices, seeds)["tokens"]
    assert set(random[:, 0]) == {5} and 150 < random[:, 1].sum() < 250
    first = read(Transform(48, captions="first"), indices, seeds)["tokens"]
    assert first.tolist() == [[5, 0]] * 400


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_share_of_the_prompts_is_empty(share):
    transform = Transform(48, empty_prompts=share)
    empty = read(transform, np.full(1000, 5), np.arange(1000))["tokens"][:, 0] == -1
    assert empty.mean() == pytest.approx(share, abs=0.03 if share == 0.1 else 0)


def test_an_example_depends_on_its_seed_alone_and_not_on_its_neighbours():
    together = read(Transform(48, flip=True), [3, 4, 3], [7, 8, 9])
    alone = read(Transform(48, flip=True), [4], [8])
    for name, rows in alone.items():
        np.testing.assert_array_equal(rows[0], together[name][1])
    assert np.any(together["images"][0] != together["images"][2])


def test_in_the_place_of_a_damaged_image_comes_another_and_it_is_counted():
    source = ImageText(Files(12, damaged=[2, 9]), Transform(48), numbers_of)
    indices, seeds = np.arange(12), np.arange(100, 112)
    batch, rejects = source.read(indices, seeds)
    again, _ = source.read(indices, seeds)
    assert rejects.counts["damaged image"] >= 2
    assert rejects.first == {"damaged image": "file 2"}
    good = np.isin(indices, [2, 9], invert=True)
    np.testing.assert_array_equal(batch["tokens"][good, 0], indices[good])
    assert not set(batch["tokens"][:, 0]) & {2, 9}
    np.testing.assert_array_equal(batch["images"], again["images"])
    other = {source.read(np.array([2]), np.array([s]))[0]["tokens"][0, 0] for s in range(20)}
    assert len(other) > 5


def test_a_source_without_a_usable_image_is_refused():
    source = ImageText(Files(3, damaged=[0, 1, 2]), Transform(48), numbers_of)
    with pytest.raises(InputError, match=r"files: 100 examples in a row .*100 damaged image"):
        source.read(np.array([0]), np.array([0]))


def batches_of(workers, processes, start, count):
    """Batches `start` to `start + count`, put together from all processes."""
    source = ImageText(Files(12, damaged=[4]), Transform(48, flip=True), numbers_of)
    parts = []
    for process in range(processes):
        batches = Batches(source, 4, 3, workers, share=(process, processes))
        with closing(batches.iterate(start)) as iterator:
            parts.append([{k: v.copy() for k, v in next(iterator).items()} for _ in range(count)])
    return [
        {name: np.concatenate([part[name] for part in row]) for name in row[0]}
        for row in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize(
    ("workers", "processes"), [(0, 2), pytest.param(2, 2, marks=pytest.mark.nightly)]
)
def test_same_examples_and_crops_for_any_workers_and_processes_and_after_a_resume(
    workers, processes
):
    expected = batches_of(0, 1, 0, 8)
    resumed = batches_of(workers, processes, 3, 5)
    for batch, other in zip(expected[3:], resumed, strict=True):
        assert batch.keys() == other.keys() == {"images", "tokens", "time_ids"}
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])
