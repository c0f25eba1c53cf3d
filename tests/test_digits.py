"""The digits job does what it is for: a student of a few steps that draws like its teacher."""

import json
from pathlib import Path

import pytest

from slam_jax import main

CONFIG = Path(__file__).parents[1] / "configs/digits.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_short_run_draws_digits_in_two_steps_better_than_its_teacher(tmp_path):
    main.main(
        [
            "--config",
            str(CONFIG),
            "--workdir",
            str(tmp_path / "run"),
            "--config.teacher.training.steps=1500",
            "--config.training.steps=400",
            "--config.training.sample_every=0",
            "--config.evaluation.samples=1000",
            "--config.evaluation.teacher_steps=(50,2)",
            "--config.evaluation.student_steps=(1,2,4)",
        ]
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = {(row["model"], row["steps"]): row for row in summary["results"]}
    teacher_50 = rows["teacher", 50]["fd_pixels"]
    for steps in (2, 4):
        assert rows["student", steps]["label_accuracy"] > 0.97
        assert rows["student", steps]["fd_pixels"] < 1.5 * teacher_50
        assert rows["student", steps]["fd_pixels"] < 0.7 * rows["teacher", 2]["fd_pixels"]
    assert rows["student", 1]["label_accuracy"] > 0.9
