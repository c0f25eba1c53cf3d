"""The benchmark that kills a run and lets it go on, with few kills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEED = "3434"  # the kill while a checkpoint is saved comes 3 ms after its beginning


@pytest.mark.nightly
def test_run_that_is_killed_ends_in_the_bits_of_one_that_is_not(tmp_path):
    assert "PYTHONPATH=. python benchmarks/kill.py\n" in (ROOT / "docs/reliability.md").read_text()
    small = ["--aims", "step", "save", "start", "--steps", "18", "--seed", SEED]
    folders = ["--cache", ROOT / ".cache/jax", "--out", tmp_path]
    done = subprocess.run(
        [sys.executable, "benchmarks/kill.py", *small, *folders],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    report = json.loads((tmp_path / "kill.json").read_text())
    # Another one may come while a checkpoint is being saved, too.
    assert report["kills"] == 3 and report["hit"]["save"] >= 1
    assert report["arrays_equal"] and report["metrics_equal"] and report["weights_are_finite"]
