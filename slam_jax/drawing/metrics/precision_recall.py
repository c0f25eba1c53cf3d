"""Precision and recall: which share of drawn pictures looks real, and of real ones can be drawn.

A picture is in the manifold of a set if it lies no further from one of its members than that
member's third neighbour does (Kynkaanniemi et al. 2019, arXiv 1904.06991, k = 3), in the features
of InceptionV3; the authors took VGG's.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slam_jax.drawing.metrics.metric import Drawn, Metric

NEIGHBOURS = 3
BLOCK = 1024


class Precision(Metric):
    """The share of drawn pictures in the manifold of the real ones."""

    name, title, lower_is_better = "precision", "precision", False
    compares_with, networks, needs_rows = "reference", ("inception",), True

    def compute(self, drawn: Drawn) -> float:
        return share_inside(*_sets(drawn, self.networks[0]))

    def fewest(self, widths) -> int:
        return NEIGHBOURS + 1


class Recall(Metric):
    """The share of real pictures in the manifold of the drawn ones."""

    name, title, lower_is_better = "recall", "recall", False
    compares_with, networks, needs_rows = "reference", ("inception",), True

    def compute(self, drawn: Drawn) -> float:
        ours, real = _sets(drawn, self.networks[0])
        return share_inside(real, ours)

    def fewest(self, widths) -> int:
        return NEIGHBOURS + 1


def _sets(drawn: Drawn, network: str) -> tuple[np.ndarray, np.ndarray]:
    ours, real = (drawn.features[whose, network] for whose in ("model", "reference"))
    return ours.array(), real.array()


def share_inside(rows: Float[np.ndarray, "N D"], members: Float[np.ndarray, "M D"]) -> float:
    """The share of rows in the manifold of the members; M is more than NEIGHBOURS."""
    inside = np.zeros(len(rows), bool)
    for start in range(0, len(members), BLOCK):
        block = members[start : start + BLOCK]
        radii = _reach(block, members)
        for first in range(0, len(rows), BLOCK):
            part = slice(first, first + BLOCK)
            inside[part] |= (np.asarray(_squares(rows[part], block)) <= radii).any(axis=1)
    return float(inside.mean())


def _reach(block: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Squared distance of each row of a block to its NEIGHBOURS-th other member; it is a member
    itself, at distance 0."""
    best = np.full((len(block), NEIGHBOURS + 1), np.inf)
    for start in range(0, len(members), BLOCK):
        squares = np.asarray(_squares(block, members[start : start + BLOCK]))
        best = np.sort(np.concatenate([best, squares], axis=1), axis=1)[:, : NEIGHBOURS + 1]
    return best[:, -1]


@jax.jit
def _squares(x: Float[Array, "n D"], y: Float[Array, "m D"]) -> Float[Array, "n m"]:
    cross = jnp.matmul(x, y.T, precision="highest")
    return (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2 * cross
