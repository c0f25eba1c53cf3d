"""The digits job does what it is for: a student of a few steps that draws like its teacher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = [
    "--config.teacher.training.steps=1200",
    "--config.training.steps=400",
    "--config.training.sample_every=0",
    "--config.evaluation.samples=1000",
    "--config.evaluation.teacher_steps=(50,2)",
    "--config.evaluation.student_steps=(1,2,4)",
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_short_run_draws_digits_in_two_steps_better_than_its_teacher(tmp_path):
    # In a process of its own, as a user starts it: one device, and code compiled for speed.
    command = [sys.executable, "-m", "slam_jax.main", "--config", "configs/digits.py", *SHORT]
    foreign = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    subprocess.run([*command, "--workdir", tmp_path / "run"], cwd=ROOT, env=environment, check=True)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = {(row["model"], row["steps"]): row for row in summary["results"]}
    teacher_50 = rows["teacher", 50]["fd_pixels"]
    for steps in (2, 4):
        assert rows["student", steps]["label_accuracy"] > 0.97
        assert rows["student", steps]["fd_pixels"] < 1.5 * teacher_50
        assert rows["student", steps]["fd_pixels"] < 0.7 * rows["teacher", 2]["fd_pixels"]
    assert rows["student", 1]["label_accuracy"] > 0.9
