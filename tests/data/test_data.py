"""What is bundled: digits as latents and tokens, and photographs."""

import numpy as np
import pytest
import skimage.data
from sklearn import datasets

from slam_jax.data import digits, photographs


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
    batch, rejects = source.read(indices, seeds=np.zeros(3, int))
    assert len(source) == 1797 and rejects.total == 0
    assert batch.keys() == {"latents", "tokens"}
    np.testing.assert_array_equal(digits.decode_latents(batch["latents"]), images[indices])
    np.testing.assert_array_equal(batch["tokens"][:, 1], labels[indices])


def test_photographs_are_those_of_the_libraries_and_have_captions():
    images = photographs.load()
    assert images.keys() == photographs.CAPTIONS.keys() and len(images) == 15
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in images.values())
    np.testing.assert_array_equal(images["china"], datasets.load_sample_image("china.jpg"))
    np.testing.assert_array_equal(images["coins"][..., 1], skimage.data.coins())
    examples = photographs.Photographs()
    cat = next(e for e in (examples[i] for i in range(15)) if e.name == "chelsea")
    np.testing.assert_array_equal(cat.image, skimage.data.chelsea())
    assert cat.captions == (photographs.CAPTIONS["chelsea"],) and "cat" in cat.captions[0]
