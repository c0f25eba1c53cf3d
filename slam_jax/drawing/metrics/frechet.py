"""Frechet distances: between Gaussians fitted to two sets of pictures or of their features.

FID (Heusel et al. 2017) is that of InceptionV3's features. With the same pictures it falls as more
are taken, so that two FIDs are compared at the same number only.
"""

from collections.abc import Mapping
from itertools import repeat
from typing import Literal

import numpy as np

from slam_jax.drawing.metrics.classifier import classifier_of, has_labels
from slam_jax.drawing.metrics.metric import Drawn, Metric, flat, is_small
from slam_jax.features.moments import frechet_distance, moments_of

GROUPS = 20  # of pictures, one of which is left out


class FdPixels(Metric):
    """To real pictures, in pixels; of small pictures only."""

    name, title, compares_with = "fd_pixels", "FD pixels", "reference"

    def applies(self, drawn: Drawn) -> bool:
        return is_small(drawn.images) and drawn.reference is not None

    def compute(self, drawn: Drawn) -> float:
        assert drawn.images is not None and drawn.reference is not None  # it applies
        return between(flat(drawn.images), flat(drawn.reference.images))


class FdFeatures(Metric):
    """To real pictures with labels, in the features of a classifier that is fitted to them."""

    name, title, compares_with = "fd_features", "FD features", "reference"

    def applies(self, drawn: Drawn) -> bool:
        return is_small(drawn.images) and has_labels(drawn)

    def compute(self, drawn: Drawn) -> float:
        assert drawn.images is not None and drawn.reference is not None
        classifier, real = classifier_of(drawn.reference), drawn.reference.images
        return between(classifier.features(drawn.images), classifier.features(real))


class FdToTeacher(Metric):
    """To the teacher's pictures of the same noise, in pixels; of small pictures only."""

    name, title, compares_with = "fd_to_teacher", "FD to teacher", "teacher"

    def applies(self, drawn: Drawn) -> bool:
        return is_small(drawn.images) and drawn.teacher is not None

    def compute(self, drawn: Drawn) -> float:
        assert drawn.images is not None and drawn.teacher is not None
        return between(flat(drawn.images), flat(drawn.teacher))


class FdOfNetwork(Metric):
    """In the features of a network.

    Args:
      name, title: of the metric.
      network: a name in `features.registry`.
      compares_with: real pictures, or the teacher's.
    """

    too_few = "the covariance of fewer pictures than features means nothing; draw more, or use cmmd"

    def __init__(
        self, name: str, title: str, network: str, compares_with: Literal["teacher", "reference"]
    ):
        self.name, self.title, self.compares_with = name, title, compares_with
        self.networks = (network,)

    def compute(self, drawn: Drawn) -> float:
        (network,), whose = self.networks, self.compares_with
        assert whose is not None  # what it is made with
        ours, others = drawn.features["model", network], drawn.features[whose, network]
        return frechet_distance(ours.moments, others.moments)

    def fewest(self, widths: Mapping[str, int]) -> int:
        return widths[self.networks[0]] + 1

    def interval(self, drawn: Drawn) -> tuple[float, float] | None:
        """1.96 standard errors on both sides, by the jackknife: each time one of GROUPS groups of
        neighbouring pictures is left out, on both sides where these are pictures of the same noise
        (Efron and Tibshirani 1993, section 11.5). Pictures of one prompt are neighbours, and stay
        together. The bootstrap is of no use here: a sample that repeats pictures has a covariance
        of lower rank, and near as many pictures as features its spread is several times too large.
        """
        (network,), whose = self.networks, self.compares_with
        assert whose is not None
        ours, others = drawn.features["model", network], drawn.features[whose, network]
        if ours.moments.count < 2 * GROUPS:
            return None
        same_noise, values = whose == "teacher", []
        kept = others.groups(GROUPS) if same_noise else repeat(None, GROUPS)
        for group, other in zip(ours.groups(GROUPS), kept, strict=True):
            left, right = ours.moments.without(moments_of([group])), others.moments
            if other is not None:
                right = right.without(moments_of([other]))
            values.append(frechet_distance(left, right))
        number, half = self.compute(drawn), 1.96 * float(np.std(values)) * (GROUPS - 1) ** 0.5
        return number - half, number + half


def between(a: np.ndarray, b: np.ndarray) -> float:
    """The distance between two sets of rows, [N, D] and [M, D]."""
    return frechet_distance(moments_of([a]), moments_of([b]))
