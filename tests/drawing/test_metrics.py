"""Frechet distance against closed forms, and the judge of digits on images it never saw."""

import numpy as np
import pytest
from helpers import normal
from scipy import linalg
from sklearn.model_selection import train_test_split

from slam_jax.data import digits
from slam_jax.drawing.metrics import Classifier, frechet_distance


def with_moments(rows, mean, covariance):
    """Rows whose sample mean and covariance are exactly these."""
    centred = rows - rows.mean(0)
    white = centred @ np.linalg.inv(np.linalg.cholesky(np.cov(centred, rowvar=False))).T
    return mean + white @ np.linalg.cholesky(covariance).T


def covariance(seed, size=5):
    root = normal(seed, size, size)
    return root @ root.T + 0.1 * np.eye(size)


def test_frechet_distance_by_hand():
    """Diagonal covariances: |difference of means|^2 + sum (std_a - std_b)^2."""
    a = with_moments(normal(0, 50, 2), np.array([1.0, 2.0]), np.diag([4.0, 1.0]))
    b = with_moments(normal(1, 70, 2), np.array([4.0, -2.0]), np.diag([9.0, 25.0]))
    assert frechet_distance(a, b) == pytest.approx(3**2 + 4**2 + 1**2 + 4**2)
    assert frechet_distance(b, a) == pytest.approx(42)


def test_frechet_distance_of_correlated_gaussians_matches_the_matrix_square_root():
    (mean_a, mean_b), cov_a, cov_b = normal(2, 2, 5), covariance(3), covariance(4)
    a = with_moments(normal(5, 40, 5), mean_a, cov_a)
    b = with_moments(normal(6, 30, 5), mean_b, cov_b)
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(
        cov_a + cov_b - 2 * np.real(linalg.sqrtm(cov_a @ cov_b))
    )
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_degenerate_data():
    """Fewer rows than columns, and columns that never change, as in the corners of digits."""
    few, shift = normal(7, 3, 20), 2.0
    few[:, :5] = 1.0
    assert frechet_distance(few, few + shift) == pytest.approx(20 * shift**2)
    one_column = np.array([[0.0], [2.0]])
    assert frechet_distance(one_column, one_column + 3) == pytest.approx(9)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones((5, 3)), np.ones((5, 4))),
        (np.ones((1, 3)), np.ones((5, 3))),
        (np.ones((5, 3)), np.ones((1, 3))),
        (np.ones((5, 3, 1)), np.ones((5, 3, 1))),
    ],
)
def test_frechet_distance_refuses_other_shapes(a, b):
    with pytest.raises(ValueError, match="frechet_distance"):
        frechet_distance(a, b)


@pytest.fixture(scope="module")
def judge():
    return Classifier.fit(*digits.load())


@pytest.fixture(scope="module")
def held_out():
    """The fifth of the digits that `Classifier.fit` says it sets aside."""
    images, labels = digits.load()
    _, images, _, labels = train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    return images, labels


def test_classifier_reads_digits_it_never_saw(judge, held_out):
    images, labels = held_out
    assert judge.accuracy > 0.95
    assert judge.label_accuracy(images, labels) == pytest.approx(judge.accuracy)
    assert judge.label_accuracy(images, (labels + 1) % 10) < 0.05
    half_wrong = np.where(np.arange(len(labels)) % 2, labels, (labels + 1) % 10)
    assert 0.4 < judge.label_accuracy(images, half_wrong) < 0.6


def test_features_are_the_hidden_layer_that_the_answer_is_read_from(judge, held_out):
    images, _ = held_out
    features = judge.features(images)
    assert features.shape == (len(images), 64)
    assert features.min() == 0
    logits = features @ judge.network.coefs_[1] + judge.network.intercepts_[1]
    expected = judge.network.predict(images.reshape(len(images), -1))
    np.testing.assert_array_equal(logits.argmax(1), expected)
