"""A small classifier of labelled pictures, and the share of drawn ones that it reads rightly."""

import functools
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from slam_jax.data.reference import Reference
from slam_jax.drawing.metrics.metric import MOST_VALUES, Drawn, Metric, flat

FEW = 5  # real pictures of a label, to fit a classifier and to judge it


class LabelAccuracy(Metric):
    """The share of pictures that the classifier reads as the label they were drawn for; the higher
    the better."""

    name, title, compares_with = "label_accuracy", "label accuracy", "reference"
    lower_is_better = False

    def applies(self, drawn: Drawn) -> bool:
        return has_labels(drawn)

    def compute(self, drawn: Drawn) -> float:
        assert drawn.images is not None and drawn.reference is not None  # it applies
        return classifier_of(drawn.reference).label_accuracy(drawn.images, drawn.prompts)


@dataclass(frozen=True)
class Classifier:
    """A judge of pictures, scored on the part of the data that it was not trained on.

    Attributes:
      network: the fitted MLPClassifier of scikit-learn.
      accuracy: on the held-out images.
    """

    network: Any
    accuracy: float

    @classmethod
    def fit(cls, reference: Reference) -> "Classifier":
        """Fits it, always with the same split and the same weights at the start."""
        from sklearn.exceptions import ConvergenceWarning  # these take a while
        from sklearn.model_selection import train_test_split
        from sklearn.neural_network import MLPClassifier

        labels = np.array(reference.labels)
        x, x_held_out, y, y_held_out = train_test_split(
            flat(reference.images), labels, test_size=0.2, random_state=0, stratify=labels
        )
        network = MLPClassifier((64,), alpha=1e-2, max_iter=300, random_state=0)
        # Matrices this small are slower on many threads: 2 s become 40 s where others compute too.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # its accuracy says how good it is
            network.fit(x, y)
        return cls(network, float(network.score(x_held_out, y_held_out)))

    def features(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N 64"]:
        """Activations of the hidden layer."""
        hidden = flat(images) @ self.network.coefs_[0] + self.network.intercepts_[0]
        return np.maximum(hidden, 0)

    def label_accuracy(
        self, images: Float[np.ndarray, "N H W C"], labels: tuple[str, ...]
    ) -> float:
        """The share of images that it reads as the label they were drawn for."""
        return float(np.mean(self.network.predict(flat(images)) == np.array(labels)))


def has_labels(drawn: Drawn) -> bool:
    """Whether a classifier of the real pictures' labels can judge these: they are small, of these
    labels, and there are several real ones of each."""
    if drawn.reference is None or drawn.images is None:
        return False
    counts = Counter(drawn.reference.labels)
    small = drawn.images[0].size <= MOST_VALUES
    return small and min(counts.values()) >= FEW and set(drawn.prompts) <= counts.keys()


@functools.lru_cache(maxsize=2)
def classifier_of(reference: Reference) -> Classifier:
    """The classifier fitted to real pictures; once, whichever metrics use it."""
    return Classifier.fit(reference)
