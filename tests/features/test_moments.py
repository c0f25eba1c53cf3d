"""Streaming mean and covariance against numpy, and the Frechet distance against closed forms."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import normal
from scipy import linalg

from slam_jax.features.moments import frechet_distance, moments_of
from slam_jax.features.rows import Rows, Summary, in_memory


def distance(a, b):
    return frechet_distance(moments_of([a]), moments_of([b]))


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
    assert distance(a, b) == pytest.approx(3**2 + 4**2 + 1**2 + 4**2)
    assert distance(b, a) == pytest.approx(42)


def test_frechet_distance_of_correlated_gaussians_matches_the_matrix_square_root():
    (mean_a, mean_b), cov_a, cov_b = normal(2, 2, 5), covariance(3), covariance(4)
    a = with_moments(normal(5, 40, 5), mean_a, cov_a)
    b = with_moments(normal(6, 30, 5), mean_b, cov_b)
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(
        cov_a + cov_b - 2 * np.real(linalg.sqrtm(cov_a @ cov_b))
    )
    assert distance(a, b) == pytest.approx(expected)
    assert distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_degenerate_data():
    """Fewer rows than columns, and columns that never change, as in the corners of digits."""
    few, shift = normal(7, 3, 20), 2.0
    few[:, :5] = 1.0
    assert distance(few, few + shift) == pytest.approx(20 * shift**2)
    one_column = np.array([[0.0], [2.0]])
    assert distance(one_column, one_column + 3) == pytest.approx(9)


@pytest.mark.parametrize("cuts", [[], [1], [7, 8, 2000]])
def test_blocks_of_any_size_give_numpys_mean_and_covariance(cuts):
    """Features with large means, whose squares float32 would not tell apart."""
    rows = (normal(8, 2500, 6) @ normal(9, 6, 6) + 1000).astype(np.float32)
    found = moments_of(np.split(rows, cuts))
    exact = rows.astype(np.float64)
    assert found.count == 2500
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-14)
    np.testing.assert_allclose(
        found.covariance, np.cov(exact, rowvar=False), rtol=1e-10, atol=1e-10
    )


def test_moments_without_a_part_are_those_of_the_rest():
    rows = normal(10, 40, 3) + 5
    found = moments_of([rows]).without(moments_of([rows[7:19]]))
    rest = np.concatenate([rows[:7], rows[19:]])
    assert found.count == 28
    np.testing.assert_allclose(found.mean, rest.mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(rest, rowvar=False), atol=1e-12)


@pytest.mark.parametrize("cuts", [[], [1, 2], [5, 20, 21], [30]])
def test_groups_are_neighbours_whatever_the_blocks(cuts):
    array = normal(13, 31, 2)
    groups = list(Rows(lambda: np.split(array, cuts)).groups(4))
    assert [len(group) for group in groups] == [7, 8, 8, 8]
    np.testing.assert_array_equal(np.concatenate(groups), array)


def test_a_distance_refuses_other_widths_and_single_rows():
    a, b = (moments_of([normal(11, 5, width)]) for width in (3, 4))
    with pytest.raises(ValueError, match="3 features and 4"):
        frechet_distance(a, b)
    for blocks in ([], [np.ones((1, 3))]):
        with pytest.raises(ValueError, match="two rows or more"):
            moments_of(blocks)


def test_rows_are_read_again_each_time_and_moments_once():
    reads = []
    array = normal(12, 9, 2)

    def read():
        reads.append(1)
        return np.split(array, 3)

    rows = Rows(read)
    np.testing.assert_array_equal(rows.array(), array)
    assert rows.moments is rows.moments
    assert len(reads) == 2
    known = Summary.of(rows.moments, "stats.npz")
    assert known.moments is rows.moments
    with pytest.raises(Exception, match="stats.npz: holds mean and covariance only"):
        known.array()
    np.testing.assert_array_equal(in_memory(array).array(), array)


STREAMED = """
import json, resource
from slam_jax.parallel import runtime
runtime.configure()
from test_moments import blocks
from slam_jax.features.moments import frechet_distance, moments_of
moments_of([next(blocks(0))])  # what the library itself takes, and JAX
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
distance = frechet_distance(moments_of(blocks(0)), moments_of(blocks(1)))
print(json.dumps([distance, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def blocks(seed, count=50_000, width=2048):
    """Rows as InceptionV3 gives them: above 0, most of them small, correlated."""
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((64, width), np.float32) * 0.1
    generator = np.random.default_rng(seed + 1)
    for start in range(0, count, 1000):
        hidden = generator.standard_normal((min(1000, count - start), 64), np.float32)
        noise = generator.standard_normal((len(hidden), width), np.float32)
        yield np.maximum((hidden + 0.05 * seed) @ mixing + 0.3 * noise, 0)


@pytest.mark.nightly
def test_fid_of_50000_rows_takes_little_memory_and_is_the_direct_formula():
    """scipy's matrix square root, of covariances that numpy makes of all rows at once."""
    tests = Path(__file__).parents[1]
    paths = [str(tests / "features"), str(tests / "support"), str(tests.parent)]
    result = subprocess.run(
        [sys.executable, "-c", STREAMED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    streamed, kilobytes = json.loads(result.stdout)
    means, covariances = [], []
    for seed in (0, 1):
        rows = np.concatenate(list(blocks(seed))).astype(np.float64)
        means.append(rows.mean(0))
        covariances.append(np.cov(rows, rowvar=False))
        del rows
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    direct = np.sum((means[0] - means[1]) ** 2) + np.trace(sum(covariances) - 2 * root)
    assert streamed == pytest.approx(direct, rel=1e-6)
    assert kilobytes < 200 * 1024
