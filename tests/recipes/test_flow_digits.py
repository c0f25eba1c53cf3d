"""A flow-matching teacher of the digits, trained and distilled by the same recipe."""

import numpy as np
import pytest
from digits_runs import SHORT, TEACHER

import slam_jax
from slam_jax.base.errors import InputError
from slam_jax.method.flow_matching import FlowMatching
from slam_jax.recipes.student import load

SMALL = {**SHORT, "teacher": {**TEACHER, "prediction_type": "flow"}}


@pytest.mark.nightly
def test_its_student_is_saved_and_draws_again(tmp_path):
    student = slam_jax.distill("digits", tmp_path, **SMALL)
    images = slam_jax.sample(student, ["3", "7"], steps=2, seed=1)
    assert np.isfinite(images).all() and images.std() > 0
    for name in ("export", "teacher"):
        assert load(str(tmp_path / name)).pipeline.schedule == FlowMatching()
    again = slam_jax.sample(slam_jax.load(tmp_path / "export"), ["3", "7"], steps=2, seed=1)
    np.testing.assert_array_equal(again, images)
    assert '"prediction_type": "flow"' in (tmp_path / "export" / "config.json").read_text()


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (
            {"name": "slam_literal"},
            "config.method.name = 'slam_literal', expected slam, lcm or pcm",
        ),
        ({"sigma": "paper"}, "config.method.sigma = 'paper', expected linear"),
        ({"conditioning": "both"}, "config.method.conditioning = 'both', expected snr"),
    ],
)
def test_what_flow_matching_has_no_place_for_is_refused_before_the_teacher(tmp_path, method, line):
    with pytest.raises(InputError) as stop:
        slam_jax.distill("digits", tmp_path / "run", **SMALL, method=method)
    assert str(stop.value) == f"{line} for a flow-matching teacher"
    assert not (tmp_path / "run").exists()
