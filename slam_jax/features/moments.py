"""Mean and covariance of features, summed on the device in float64 a block at a time; and the
Frechet distance between the Gaussians that they describe."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

BLOCK = 1024  # rows that are summed at a time


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


def moments_of(
    blocks: Iterable[Float[np.ndarray, "n D"]], counts: np.ndarray | None = None
) -> Moments:
    """Mean and covariance of the rows of all blocks.

    Sums of x and x x^T, x being the difference from the first block's mean: what large means would
    round away stays.

    Args:
      blocks: two rows or more, all of D features.
      counts: how often each row counts; None: once.

    Raises:
      ValueError: there are fewer than two rows.
    """
    total, sums, shift = 0, None, None
    with jax.enable_x64(True):
        for block in blocks:
            for rows in np.split(block, range(BLOCK, len(block), BLOCK)):
                end = total + len(rows)
                weights = np.ones(len(rows)) if counts is None else counts[total:end]
                if sums is None:
                    shift = rows.mean(axis=0, dtype=np.float64)
                    sums = jnp.zeros(()), jnp.zeros_like(shift), jnp.zeros((shift.size,) * 2)
                missing = BLOCK - len(rows)  # one shape, hence one program; they weigh nothing
                padded = np.pad(rows, ((0, missing), (0, 0)))
                sums = _add(sums, padded, np.pad(weights, (0, missing)).astype(float), shift)
                total = end
        if sums is None or shift is None or total < 2:
            raise ValueError(f"moments_of: expected two rows or more, got {total}")
        weight, first, second = jax.device_get(_centred(sums))
    return Moments(int(weight), shift + first, second)


@partial(jax.jit, donate_argnums=0)
def _add(sums, rows, weights, shift):
    weight, first, second = sums
    x = rows.astype(jnp.float64) - shift[None]
    weighted = weights[:, None] * x
    return weight + weights.sum(), first + weighted.sum(axis=0), second + weighted.T @ x


@partial(jax.jit, donate_argnums=0)
def _centred(sums):
    weight, first, second = sums
    mean = first / weight
    return weight, mean, (second - jnp.outer(first, mean)) / (weight - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Frechet distance between two Gaussians.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), Heusel et al. 2017 (arXiv
    1706.08500), equation 6.

    Raises:
      ValueError: they are of different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"frechet_distance: {a.mean.size} features and {b.mean.size}")
    # cov_a = root root^T; cov_a cov_b has the eigenvalues of root^T cov_b root, which are real.
    values, root = np.linalg.eigh(a.covariance)
    root *= np.sqrt(np.maximum(values, 0))
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root.T @ b.covariance @ root), 0)).sum()
    squared_distance = np.sum((a.mean - b.mean) ** 2)
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    # Rounding may take equal sets a hair below zero.
    return max(float(squared_distance + trace - 2 * cross), 0.0)
