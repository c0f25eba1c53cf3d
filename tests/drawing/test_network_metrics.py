"""Metrics of networks' features against independent computations in torch and numpy."""

import numpy as np
import pytest
import torch
from helpers import normal
from scipy.spatial.distance import cdist

from slam_jax.drawing.metrics.clip_score import ClipScore, Diversity
from slam_jax.drawing.metrics.cmmd import Cmmd
from slam_jax.drawing.metrics.metric import Drawn
from slam_jax.drawing.metrics.precision_recall import Precision, Recall, share_inside
from slam_jax.drawing.metrics.registry import METRICS, is_possible, measure
from slam_jax.drawing.metrics.retrieval import Retrieval
from slam_jax.features.moments import frechet_distance, moments_of
from slam_jax.features.rows import Rows, in_memory


def in_blocks(array, *cuts):
    return Rows(lambda: np.split(array, cuts))


def drawn(network, prompts=(), **rows):
    features = {
        (whose, network): in_memory(x) if isinstance(x, np.ndarray) else x
        for whose, x in rows.items()
    }
    return Drawn(None, prompts, features=features)


def test_cmmd_is_the_authors_formula_in_torch():
    """mmd.py of google-research/cmmd: exp(-(|x|^2 + |y|^2 - 2 x y) / (2 sigma^2)), with the
    diagonal, of features of length 1."""
    ours, real = normal(0, 300, 16).astype("f4"), (normal(1, 200, 16) + 0.3).astype("f4")

    def mean_kernel(a, b):
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        return torch.exp(-squares / (2 * 10**2)).mean()

    x, y = (torch.nn.functional.normalize(torch.tensor(z).double(), dim=1) for z in (ours, real))
    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    of = drawn("clip_l14_336", model=in_blocks(ours, 100), reference=in_blocks(real, 7, 150))
    assert Cmmd().compute(of) == pytest.approx(expected.item(), rel=1e-5)
    # Two sets of one distribution are a thousandth as far apart.
    same = drawn("clip_l14_336", model=ours, reference=normal(2, 300, 16).astype("f4"))
    assert Cmmd().compute(same) < 0.2 * expected.item()


def test_clip_score_is_the_mean_cosine():
    pictures, texts = normal(3, 40, 8), normal(4, 40, 8)
    expected = torch.nn.functional.cosine_similarity(torch.tensor(pictures), torch.tensor(texts))
    of = drawn("clip_b32", model=in_blocks(pictures, 30), prompts=())
    of = Drawn(
        None, ("",) * 40, features={**of.features, ("prompts", "clip_b32"): in_blocks(texts, 30)}
    )
    assert ClipScore().compute(of) == pytest.approx(expected.mean().item(), rel=1e-6)


def test_diversity_is_of_pairs_of_one_prompt():
    features = normal(5, 6, 4)
    prompts = ("a", "b", "a", "c", "a", "b")
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    of_a = np.mean([cosines[0, 2], cosines[0, 4], cosines[2, 4]])
    of = drawn("clip_b32", prompts, model=features)
    assert Diversity().compute(of) == pytest.approx(1 - (of_a + cosines[1, 5]) / 2)
    assert not Diversity().applies(drawn("clip_b32", ("a", "b"), model=features))


def test_retrieval_is_among_the_distinct_prompts():
    prompts = ("red", "green", "red", "blue", "green", "red", "blue", "red")
    texts = {name: normal(seed, 6) for seed, name in enumerate(("blue", "green", "red"))}
    pictures = np.stack([texts[name] for name in prompts]) + normal(12, 8, 6)
    right = []
    for picture, name in zip(torch.tensor(pictures), prompts, strict=True):
        cosines = {
            other: torch.nn.functional.cosine_similarity(picture, torch.tensor(text), dim=0)
            for other, text in texts.items()
        }
        right.append(max(cosines, key=cosines.get) == name)
    assert 0 < sum(right) < 8
    read = in_memory(np.stack([texts[name] for name in prompts]) * np.arange(1, 9)[:, None])
    features = {("model", "clip_own"): in_blocks(pictures, 3), ("prompts", "clip_own"): read}
    of = Drawn(None, prompts, features=features)
    assert measure(of, ["retrieval"]) == {"retrieval": sum(right) / 8}
    assert Retrieval().choices(of) == 3 and not Retrieval().lower_is_better
    assert not is_possible(Retrieval(), Drawn(None, ("red",) * 8, features=features))


def test_precision_and_recall_by_the_distances_of_all_pairs():
    ours, real = normal(6, 150, 3), normal(7, 130, 3) * 1.5 + 0.5

    def share(rows, members):
        radii = np.sort(cdist(members, members), axis=1)[:, 3]
        return (cdist(rows, members) <= radii[None]).any(axis=1).mean()

    of = drawn("inception", model=ours, reference=real)
    assert Precision().compute(of) == pytest.approx(share(ours, real))
    assert Recall().compute(of) == pytest.approx(share(real, ours))
    assert 0.2 < share(real, ours) < share(ours, real) < 1


def test_manifolds_larger_than_a_block():
    members, rows = normal(8, 1500, 2), normal(9, 1100, 2) * 2
    radii = np.sort(cdist(members, members), axis=1)[:, 3]
    expected = (cdist(rows, members) <= radii[None]).any(axis=1).mean()
    assert share_inside(rows.astype("f4"), members.astype("f4")) == pytest.approx(
        expected, abs=2e-3
    )


@pytest.mark.parametrize(
    ("name", "network", "compared"),
    [
        ("fid", "inception", "reference"),
        ("fid_to_teacher", "inception", "teacher"),
        ("fid_tf1", "inception_tf1", "reference"),
        ("patch_fid", "inception_patch", "reference"),
        ("fd_clip", "clip_l14", "reference"),
        ("fd_dinov2", "dinov2", "reference"),
        ("fd_efficientnet", "efficientnet_lite0", "reference"),
        ("fd_efficientnet_to_teacher", "efficientnet_lite0", "teacher"),
    ],
)
def test_frechet_distances_of_networks(name, network, compared):
    ours, others = normal(10, 60, 4), normal(11, 50, 4) + 0.2
    of = drawn(network, model=in_blocks(ours, 20, 21), **{compared: others})
    expected = frechet_distance(moments_of([ours]), moments_of([others]))
    assert measure(of, [name]) == {name: pytest.approx(expected)}
    assert METRICS[name].fewest({network: 2048}) == 2049
    assert measure(of) == {}  # asked for by name only
    assert "FID" not in METRICS[name].title or network.startswith("inception")
    without = drawn(network, model=ours)
    assert not is_possible(METRICS[name], without)


REPEATED = 60


@pytest.mark.parametrize(
    ("count", "kind"),
    [(61, "real"), (120, "real"), (900, "real"), (300, "paired"), (400, "of one prompt")],
)
def test_the_interval_of_a_distance_has_the_width_of_repetitions(count, kind):
    """The deviation of other sets of pictures against what the interval says of each: hardly more
    pictures than the 60 features, many more, the teacher's pictures of the same noise, and four
    alike pictures of each prompt."""
    generator = np.random.default_rng(0)
    shift = np.eye(60)[:1] * 2
    others = in_memory(generator.standard_normal((3000, 60)))

    def sample():
        drawn = generator.standard_normal((count, 60))
        if kind == "of one prompt":
            drawn = 0.3 * drawn + np.repeat(generator.standard_normal((count // 4, 60)), 4, axis=0)
        teacher = in_memory(drawn + 0.2 * generator.standard_normal((count, 60)))
        return in_memory(drawn + shift), teacher if kind == "paired" else others

    metric = METRICS["fid_to_teacher" if kind == "paired" else "fid"]
    compared = metric.compares_with
    found, widths = [], []
    for _ in range(REPEATED):
        ours, theirs = sample()
        of = drawn("inception", model=ours, **{compared: theirs})
        found.append(metric.compute(of))
        low, high = metric.interval(of)
        assert low + high == pytest.approx(2 * found[-1])
        widths.append(high - low)
    ratio = np.mean(widths) / (2 * 1.96 * np.std(found, ddof=1))
    assert 0.7 < ratio < 1.6
