"""What a student draws before its first step."""

from pathlib import Path

import jax
import numpy as np
import pytest
from small_digits import PIPELINE, UNET

from slam_jax.families.family import Model
from slam_jax.method.slam import Slam

ROOT = Path(__file__).parents[2]


def compare(texts, images, best):
    assert len(texts) == len(images) == len(best)
    return {"rmse_to_teacher": float(np.sqrt(np.mean((images - best) ** 2)))}


@pytest.mark.parametrize("trained", [False, True])
def test_it_draws_as_the_teacher_without_guidance(monkeypatch, trained):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import untrained

    weights = jax.device_get(PIPELINE.init(UNET, jax.random.key(0)))
    params = jax.tree.map(lambda a: a + 0.1, weights) if trained else weights
    teacher = Model(PIPELINE, {}, weights, None)
    student = Model(PIPELINE, {}, params, Slam(w=2.0, conditioning="snr"))
    rows = untrained.measured(student, teacher, ["1", "2", "3"], compare)
    names = ["teacher"] * 4 + ["student, untrained"] * 4 + ["student"] * 4
    assert [row["model"] for row in rows] == names
    assert [row["steps"] for row in rows] == [8, 4, 2, 1, *[1, 2, 4, 8] * 2]
    before, after = ([row["rmse_to_teacher"] for row in rows[i : i + 4]] for i in (4, 8))
    assert np.allclose(before, after, rtol=1e-5) != trained
    lines = untrained.table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 14
