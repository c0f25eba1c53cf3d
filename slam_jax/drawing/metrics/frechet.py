"""Frechet distances: between Gaussians fitted to two sets of pictures or of their features."""

import numpy as np
from jaxtyping import Float

from slam_jax.drawing.metrics.classifier import classifier_of, has_labels
from slam_jax.drawing.metrics.metric import MOST_VALUES, Drawn, Metric, flat


class FdPixels(Metric):
    """To real pictures, in pixels; of small pictures only."""

    name, title, needs_reference = "fd_pixels", "FD pixels", True

    def applies(self, drawn: Drawn) -> bool:
        return _enough(drawn)

    def compute(self, drawn: Drawn) -> float:
        assert drawn.reference is not None  # which this metric needs
        return frechet_distance(flat(drawn.images), flat(drawn.reference.images))


class FdFeatures(Metric):
    """To real pictures with labels, in the features of a classifier that is fitted to them."""

    name, title, needs_reference = "fd_features", "FD features", True

    def applies(self, drawn: Drawn) -> bool:
        return _enough(drawn) and has_labels(drawn)

    def compute(self, drawn: Drawn) -> float:
        assert drawn.reference is not None
        classifier, real = classifier_of(drawn.reference), drawn.reference.images
        return frechet_distance(classifier.features(drawn.images), classifier.features(real))


class FdToTeacher(Metric):
    """To the teacher's pictures of the same noise, in pixels; of small pictures only."""

    name, title = "fd_to_teacher", "FD to teacher"

    def applies(self, drawn: Drawn) -> bool:
        return _enough(drawn)

    def compute(self, drawn: Drawn) -> float:
        return frechet_distance(flat(drawn.images), flat(drawn.teacher))


def _enough(drawn: Drawn) -> bool:
    """Whether pictures are small, and more than two."""
    return drawn.images[0].size <= MOST_VALUES and len(drawn.images) > 2


def frechet_distance(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> float:
    """Frechet distance between Gaussians fitted to two sets of images or features.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), Heusel et al. 2017 (arXiv
    1706.08500), equation 6.

    Args:
      a, b: one row per example; at least two rows each.

    Raises:
      ValueError: the rows have different lengths, or there is one row only.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"frechet_distance: expected [N, D] and [M, D] with N, M > 1, got {a.shape} and "
            f"{b.shape}"
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cov_a, cov_b = np.atleast_2d(cov_a), np.atleast_2d(cov_b)
    # tr (cov_a cov_b)^(1/2) by the symmetric root_a cov_b root_a, whose eigenvalues are real.
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root_a @ cov_b @ root_a), 0)).sum()
    squared_distance = np.sum((a.mean(0) - b.mean(0)) ** 2)
    # Rounding may take equal sets a hair below zero.
    return max(float(squared_distance + np.trace(cov_a + cov_b) - 2 * cross), 0.0)
