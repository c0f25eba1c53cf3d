"""Runs that are killed and go on, as the benchmark does it, with fewer kills."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEED = 3434  # the kill while a checkpoint is saved comes 3 ms after its beginning


def load_benchmark():
    spec = importlib.util.spec_from_file_location("kill", ROOT / "benchmarks/kill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_run_that_is_killed_ends_in_the_bits_of_one_that_is_not(tmp_path):
    report = load_benchmark().kill_and_compare(
        tmp_path, ["step", "save", "start"], 18, 3, ROOT / ".cache/jax", SEED
    )
    assert report["kills"] == 3 and report["hit"]["save"] == 1
    assert report["arrays_equal"] and report["metrics_equal"] and report["weights_are_finite"]
