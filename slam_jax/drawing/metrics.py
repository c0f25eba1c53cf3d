"""How good drawn images are: Frechet distances and label accuracy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits


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


@dataclass(frozen=True)
class Classifier:
    """A small judge of digit images, scored on the part of the data that it was not trained on.

    Attributes:
      network: the fitted MLPClassifier of scikit-learn.
      accuracy: on the held-out images.
    """

    network: Any
    accuracy: float

    @classmethod
    def fit(
        cls, images: Float[np.ndarray, "N H W C"], labels: Int[np.ndarray, " N"]
    ) -> "Classifier":
        """Fits it, always with the same split and the same weights at the start."""
        from sklearn.model_selection import train_test_split  # takes a while
        from sklearn.neural_network import MLPClassifier

        x, x_held_out, y, y_held_out = train_test_split(
            images.reshape(len(images), -1), labels, test_size=0.2, random_state=0, stratify=labels
        )
        network = MLPClassifier((64,), alpha=1e-2, max_iter=300, random_state=0)
        # Matrices this small are slower on many threads: 2 s become 40 s where others compute too.
        with threadpool_limits(1):
            network.fit(x, y)
        return cls(network, float(network.score(x_held_out, y_held_out)))

    def features(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N 64"]:
        """Activations of the hidden layer."""
        hidden = (
            images.reshape(len(images), -1) @ self.network.coefs_[0] + self.network.intercepts_[0]
        )
        return np.maximum(hidden, 0)

    def label_accuracy(
        self, images: Float[np.ndarray, "N H W C"], labels: Int[np.ndarray, " N"]
    ) -> float:
        """The share of images that it reads as the label they were drawn for."""
        return float(np.mean(self.network.predict(images.reshape(len(images), -1)) == labels))
