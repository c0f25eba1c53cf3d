"""Mean and covariance of features, summed on the device in float64 a block at a time; and the
Frechet distance between the Gaussians that they describe."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

BLOCK = 256  # rows that are summed at a time


@dataclass(frozen=True)
class Moments:
    """What a Frechet distance needs of N rows.

    Attributes:
      count: N.
      mean: of each feature, [D], float64.
      covariance: sums of N rows divided by N - 1, [D, D], float64.
    """

    count: int
    mean: Float[np.ndarray, " D"]
    covariance: Float[np.ndarray, "D D"]

    @cached_property
    def root(self) -> Float[np.ndarray, "D D"]:
        """A matrix R with covariance = R R^T."""
        from scipy import linalg  # takes a while, and most commands do without

        # This driver needs no workspace of two more matrices, as numpy's does.
        values, root = linalg.eigh(self.covariance, driver="evr")
        root *= np.sqrt(np.maximum(values, 0))
        return root

    def without(self, part: "Moments") -> "Moments":
        """Those of the rows that are not in a part of them."""
        count = self.count - part.count
        mean = (self.count * self.mean - part.count * part.mean) / count
        scatter = (self.count - 1) * self.covariance - (part.count - 1) * part.covariance
        scatter += self.count * np.outer(self.mean, self.mean)
        scatter -= part.count * np.outer(part.mean, part.mean) + count * np.outer(mean, mean)
        return Moments(count, mean, scatter / (count - 1))


def moments_of(blocks: Iterable[Float[np.ndarray, "n D"]]) -> Moments:
    """Mean and covariance of the rows of all blocks.

    Sums of x and x x^T, x being the difference from the first block's mean: what large means would
    round away stays.

    Args:
      blocks: two rows or more, all of D features.

    Raises:
      ValueError: there are fewer than two rows.
    """
    total, sums, shift = 0, None, None
    with jax.enable_x64(True):
        for block in blocks:
            for rows in np.split(block, range(BLOCK, len(block), BLOCK)):
                if sums is None:
                    shift = rows.mean(axis=0, dtype=np.float64)
                    sums = jnp.zeros_like(shift), jnp.zeros((shift.size,) * 2)
                # One shape, hence one program: what is missing counts nothing.
                padded = np.pad(rows, ((0, BLOCK - len(rows)), (0, 0)))
                sums = _add(sums, padded, (np.arange(BLOCK) < len(rows)).astype(float), shift)
                total += len(rows)
        if sums is None or shift is None or total < 2:
            raise ValueError(f"moments_of: expected two rows or more, got {total}")
        first, second = jax.device_get(_centred(sums, total))
    return Moments(total, shift + first, second)


@partial(jax.jit, donate_argnums=0)
def _add(sums, rows, counts, shift):
    first, second = sums
    x = counts[:, None] * (rows.astype(jnp.float64) - shift[None])
    return first + x.sum(axis=0), second + x.T @ x


@partial(jax.jit, donate_argnums=0)
def _centred(sums, total):
    first, second = sums
    mean = first / total
    return mean, (second - jnp.outer(first, mean)) / (total - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Frechet distance between two Gaussians.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), Heusel et al. 2017 (arXiv
    1706.08500), equation 6.

    Args:
      a: one of them.
      b: the other, whose root is kept for the next call.

    Raises:
      ValueError: they are of different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"frechet_distance: {a.mean.size} features and {b.mean.size}")
    from scipy import linalg

    # cov_a cov_b has the eigenvalues of root_b^T cov_a root_b, which are real.
    product = b.root.T @ (a.covariance @ b.root)
    values = linalg.eigvalsh(product, overwrite_a=True, driver="evr")
    cross = np.sqrt(np.maximum(values, 0)).sum()
    squared_distance = np.sum((a.mean - b.mean) ** 2)
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    # Rounding may take equal sets a hair below zero.
    return max(float(squared_distance + trace - 2 * cross), 0.0)
