"""Another method than SLAM in a whole run: its options, its metrics, its student."""

import json

import numpy as np
import pytest
from digits_runs import SHORT

import slam_jax
from slam_jax.method.pcm import Pcm


@pytest.mark.nightly
def test_phased_consistency_from_the_recipe_of_slam(tmp_path):
    """It takes w from the recipe, and has no gamma."""
    student = slam_jax.distill("digits", tmp_path, **SHORT, method={"name": "pcm", "phases": 2})
    assert student.method == Pcm(w=2.0, phases=2)
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows)
    names = {name for row in rows for name in row}
    assert {f"loss_t{i}" for i in range(4)} <= names and "loss_gamma0" not in names
    images = slam_jax.sample(student, ["3", "7"], steps=2, seed=1)
    assert (slam_jax.sample(student, "3", steps=2, seed=1) == images[:1]).all()
    assert slam_jax.load(tmp_path / "export").method == student.method
    text = (tmp_path / "report.html").read_text()
    assert "method.phases" in text and "Gamma has no effect" not in text
