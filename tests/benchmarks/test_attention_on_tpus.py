"""The script that asks the compiler for TPUs what it makes of an attention."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import jit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import attention_on_tpus

    return attention_on_tpus


def test_more_features_of_zeros_change_nothing(script):
    """Against the definition, in float64."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 6, 2, 40))
    scores = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(40))
    expected = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(axis=-1, keepdims=True), v)
    variants = script.variants(40)
    assert [*variants] == ["xla", "xla, 64 features", "xla, 128 features", "splash"]
    assert [*script.variants(80)] == ["xla", "xla, 128 features", "splash"]
    for name in ("xla", "xla, 64 features", "xla, 128 features"):
        out = jit(variants[name])(*np.float32((q, k, v)))
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_without_the_compiler_a_line_says_what_to_install(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        script.main(["--out", str(tmp_path)])
    assert capsys.readouterr().err.endswith("pip install 'slam_jax[tpu-plan]'\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_kernel_keeps_no_scores_outside_of_the_chip(tmp_path):
    """In a process of its own: the compiler may take it along."""
    one = "import sys, attention_on_tpus as script; script.SHAPES = ((4096, 40),); script.main()"
    folder = ROOT / "benchmarks"
    command = [sys.executable, "-c", one, "--out", str(tmp_path)]
    environment = {"PYTHONPATH": f"{ROOT}:{folder}", "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "attention_v5e_1x1.json").read_text())
    found = {row["variant"]: row for row in report["rows"]}
    scores = 4 * 8 * 4096**2  # bytes
    for direction in ("forward", "backward"):
        assert found["xla"][direction]["temporary"] >= scores
        assert found["splash"][direction]["temporary"] < scores / 100
        assert 0 < found["splash"][direction]["cycles"] < found["xla"][direction]["cycles"]
    rows = (tmp_path / "attention_v5e_1x1.md").read_text().splitlines()
    assert len(rows) == 2 + 4 and rows[-1].startswith("| 4096 | 40 | splash | ")
