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


# By day the notebook's assertions say that distilling works, in the plane.
@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_the_student_draws_in_two_and_four_steps_like_its_teacher_in_fifty(tmp_path):
    # In a process of its own, as a user starts it: one device, and code compiled for speed.
    command = [sys.executable, "-m", "slam_jax.main", "--config", "configs/digits.py", *FLAGS]
    foreign = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    subprocess.run([*command, "--workdir", tmp_path / "run"], cwd=ROOT, env=environment, check=True)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = {(row["model"], row["steps"]): row for row in summary["results"]}
    teacher_50 = rows["teacher", 50]["fd_pixels"]
    for steps in (2, 4):
        assert rows["student", steps]["label_accuracy"] >= 0.99
        assert rows["student", steps]["fd_pixels"] <= 1.15 * teacher_50
        assert rows["student", steps]["fd_pixels"] < 0.7 * rows["teacher", 2]["fd_pixels"]
    assert rows["student", 1]["label_accuracy"] > 0.95
    assert summary["peak_memory_gb"] < 3
