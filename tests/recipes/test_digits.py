"""The digits job does what it is for: a student of a few steps that draws like its teacher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of the report only what is looked at here.
FLAGS = [
    "--config.training.sample_every=0",
    "--config.evaluation.teacher_steps=(50,2)",
    "--config.evaluation.student_steps=(1,2,4)",
]


HALF = ["--config.teacher.training.steps=2000", "--config.training.steps=750"]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("training", "accuracy", "accuracy_of_one_step"),
    [
        pytest.param(HALF, 0.95, 0.8, marks=pytest.mark.slow, id="half of the training"),
        pytest.param([], 0.99, 0.95, marks=pytest.mark.nightly, id="the whole training"),
    ],
)
def test_the_student_draws_in_two_and_four_steps_like_its_teacher_in_fifty(
    tmp_path, training, accuracy, accuracy_of_one_step
):
    # In a process of its own, as a user starts it: one device, and code compiled for speed.
    command = [sys.executable, "-m", "slam_jax.main", "--config", "configs/digits.py", *FLAGS]
    command += training
    foreign = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    subprocess.run([*command, "--workdir", tmp_path / "run"], cwd=ROOT, env=environment, check=True)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = {(row["model"], row["steps"]): row for row in summary["results"]}
    teacher_50 = rows["teacher", 50]["fd_pixels"]
    for steps in (2, 4):
        assert rows["student", steps]["label_accuracy"] >= accuracy
        assert rows["student", steps]["fd_pixels"] <= 1.15 * teacher_50
        assert rows["student", steps]["fd_pixels"] < 0.7 * rows["teacher", 2]["fd_pixels"]
    assert rows["student", 1]["label_accuracy"] > accuracy_of_one_step
    assert summary["peak_memory_gb"] < 3
