"""Digits as latents and tokens, and the pipeline of batches."""

import json

import numpy as np
import pytest
import skimage.data
from sklearn import datasets

from slam_jax.data import digits, photographs
from slam_jax.data.batches import batches


def test_images_are_scikit_learns_digits_in_minus_one_to_one():
    images, labels = digits.load()
    original = datasets.load_digits()
    assert images.shape == (1797, *digits.IMAGE_SHAPE)
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)
    assert (images.min(), images.max()) == (-1, 1)
    np.testing.assert_array_equal((images[..., 0] + 1) * 8, original.images)
    np.testing.assert_array_equal(labels, original.target)


def test_latents_are_two_by_two_patches():
    images = digits.load()[0][:20]
    latents = digits.encode_images(images)
    assert latents.shape == (20, *digits.LATENT_SHAPE)
    for row, column in np.ndindex(4, 4):
        patch = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, 0]
        np.testing.assert_array_equal(latents[:, row, column], patch.reshape(20, 4))
    np.testing.assert_array_equal(digits.decode_latents(latents), images)


def test_tokens_are_start_and_label():
    tokens = digits.tokenize(np.array([3, 0, digits.NULL_LABEL]))
    assert tokens.tolist() == [[11, 3], [11, 0], [11, 10]]
    assert tokens.dtype == np.int32
    embedded = np.asarray(digits.embed_tokens(tokens))
    assert embedded.shape == (3, 2, digits.VOCABULARY)
    np.testing.assert_array_equal(embedded.argmax(-1), tokens)
    np.testing.assert_array_equal(embedded.sum(-1), 1)


@pytest.mark.parametrize("labels", [[-1], [11], [0, 12, 3]])
def test_labels_that_are_no_digits_are_refused(labels):
    with pytest.raises(ValueError, match="labels"):
        digits.tokenize(np.array(labels))


def test_source_reads_latents_and_their_tokens():
    source, (images, labels) = digits.Source(), digits.load()
    indices = np.array([1700, 3, 3])
    batch = source.__getitems__(indices, seeds=np.zeros(3, int))
    assert len(source) == 1797
    assert batch.keys() == {"latents", "tokens"}
    np.testing.assert_array_equal(digits.decode_latents(batch["latents"]), images[indices])
    np.testing.assert_array_equal(batch["tokens"][:, 1], labels[indices])


class Numbers:
    """A source whose examples are their own indices."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitems__(self, indices, seeds):
        return {"index": np.asarray(indices), "seed": np.asarray(seeds)}


def take(iterator, count):
    return [next(iterator)["index"].tolist() for _ in range(count)]


def test_every_epoch_has_every_example_once_in_another_order():
    """10 examples in batches of 4: 5 batches are 2 epochs, and the third one straddles them."""
    seen = sum(take(batches(Numbers(10), 4, seed=0), 15), [])
    epochs = [seen[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert epochs[0] != list(range(10))


def test_the_seed_decides_the_order():
    first, same, other = (take(batches(Numbers(50), 8, seed), 20) for seed in (3, 3, 4))
    assert first == same
    assert first != other


def test_an_examples_seed_differs_between_epochs_and_not_between_batch_sizes():
    rows = [next(iterator) for iterator in [batches(Numbers(6), 2, seed=5)] for _ in range(12)]
    seeds = np.concatenate([row["seed"] for row in rows])
    indices = np.concatenate([row["index"] for row in rows])
    assert len(set(seeds)) == 24 and len(set(seeds[indices == 3])) == 4
    wide = next(batches(Numbers(6), 24, seed=5))
    np.testing.assert_array_equal(wide["seed"], seeds)


@pytest.mark.parametrize("position", [0, 1, 5, 6, 13])
def test_a_saved_position_gives_the_identical_continuation(position):
    iterator = batches(Numbers(11), 2, seed=1)
    take(iterator, position)
    saved = json.dumps(iterator.get_state())
    expected = take(iterator, 20)

    fresh = batches(Numbers(11), 2, seed=1)
    fresh.set_state(json.loads(saved))
    assert take(fresh, 20) == expected
    iterator.set_state(json.loads(saved))  # and back in time
    assert take(iterator, 20) == expected


def test_batches_of_digits_are_ready_for_training():
    batch = next(batches(digits.Source(), 16, seed=0))
    assert batch["latents"].shape == (16, *digits.LATENT_SHAPE)
    assert batch["latents"].dtype == np.float32
    assert batch["tokens"].shape == (16, 2)


def test_photographs_are_those_of_the_libraries_and_have_captions():
    images = photographs.load()
    assert images.keys() == photographs.CAPTIONS.keys() and len(images) == 15
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in images.values())
    np.testing.assert_array_equal(images["china"], datasets.load_sample_image("china.jpg"))
    np.testing.assert_array_equal(images["coins"][..., 1], skimage.data.coins())


def tokens_of(texts):
    return np.array([[len(text)] for text in texts])


def test_crops_are_pieces_of_the_photographs_with_their_tokens_and_sizes():
    source, images = photographs.Source(tokens_of, 300, flip=False), photographs.load()
    cat = list(images).index("chelsea")  # its shorter side is 300 pixels: not resized
    batch = source.__getitems__(np.array([cat, cat, 0]), np.array([1, 2, 1]))
    assert batch["images"].shape == (3, 300, 300, 3) and batch["images"].dtype == np.uint8
    for image, ids in zip(batch["images"][:2], batch["time_ids"][:2], strict=True):
        height, width, top, left, *target = ids.astype(int)
        assert (height, width) == (300, 451) and target == [300, 300]
        piece = images["chelsea"][top : top + 300, left : left + 300]
        np.testing.assert_array_equal(image, piece)
    assert np.any(batch["images"][0] != batch["images"][1])  # another seed, another crop
    assert batch["tokens"][0] == len(photographs.CAPTIONS["chelsea"])
    again = source.__getitems__(np.array([cat]), np.array([2]))
    np.testing.assert_array_equal(again["images"][0], batch["images"][1])
    assert batch["time_ids"].dtype == np.float32
    assert batch["time_ids"][2, :2].tolist() == [427, 640]  # before resizing


def test_half_of_the_crops_are_mirrored_where_asked():
    plain, flipped = (photographs.Source(tokens_of, 64, flip) for flip in (False, True))
    indices, seeds = np.zeros(40, int), np.arange(40)
    batches_ = [source.__getitems__(indices, seeds) for source in (plain, flipped)]
    a, b = (batch["images"] for batch in batches_)
    same = (a == b).all(axis=(1, 2, 3))
    mirrored = (a == b[:, :, ::-1]).all(axis=(1, 2, 3))
    assert np.all(same ^ mirrored) and 10 < mirrored.sum() < 30
    (top, left), (top_b, left_b) = (batch["time_ids"][:, 2:4].T for batch in batches_)
    np.testing.assert_array_equal(top_b, top)
    width = 96  # of a 640 x 427 photograph whose shorter side is 64
    np.testing.assert_array_equal(left_b, np.where(mirrored, width - 64 - left, left))
