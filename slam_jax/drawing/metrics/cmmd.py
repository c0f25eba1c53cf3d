"""CMMD: a distance between sets of pictures that assumes no Gaussians, and needs fewer pictures."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slam_jax.drawing.metrics.clip_score import unit
from slam_jax.drawing.metrics.metric import Drawn, Metric
from slam_jax.features.rows import Rows

SIGMA, SCALE = 10.0, 1000.0
BLOCK = 1024  # rows that are compared at a time


class Cmmd(Metric):
    """Squared maximum mean discrepancy of CLIP's features of length 1, with the kernel
    k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10, times 1000 (Jayasumana et al. 2024, arXiv
    2401.09603). Its means take a picture with itself, too, as the authors' code does."""

    name, title, compares_with = "cmmd", "CMMD", "reference"
    networks, needs_rows = ("clip_l14_336",), True

    def compute(self, drawn: Drawn) -> float:
        (network,) = self.networks
        ours, real = (drawn.features[whose, network] for whose in ("model", "reference"))
        within = mean_kernel(ours, ours) + mean_kernel(real, real)
        return SCALE * (within - 2 * mean_kernel(ours, real))


def mean_kernel(a: Rows, b: Rows) -> float:
    """The mean of k - 1 over all pairs; the ones cancel in CMMD, and would cost its digits."""
    x, y = (unit(rows.array()).astype(np.float32) for rows in (a, b))
    total = 0.0
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            total += float(_sum(x[i : i + BLOCK], y[j : j + BLOCK]))
    return total / (len(x) * len(y))


@jax.jit
def _sum(x: Float[Array, "n D"], y: Float[Array, "m D"]) -> Float[Array, ""]:
    # |x - y|^2 of rows of length 1
    squares = 2 - 2 * jnp.matmul(x, y.T, precision="highest")
    return jnp.expm1(-squares / (2 * SIGMA**2)).sum()
