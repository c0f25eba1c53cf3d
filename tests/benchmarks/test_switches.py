"""Which switches the benchmark measures, and how their rows are kept."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The scripts import each other as files of one folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(os, "environ", os.environ.copy())


def rows_of(folder):
    report = json.loads((folder / "switches_tiny_cpu.json").read_text())
    return report["switches"]["train_step"]


def test_rows_of_other_switches_stay_and_one_that_differs_stops_nothing(
    tmp_path, monkeypatch, capsys
):
    import switches

    built, warm = [], []

    def build(change, batch):
        built.append(batch)
        return np.array([2.0 if batch == "images" else 1.0]), lambda: None

    race = switches.race
    monkeypatch.setattr(switches, "race", lambda *a: warm.append(a[3]) or race(*a))
    monkeypatch.setattr(switches, "make_model", lambda shapes: None)
    monkeypatch.setattr(switches, "builders", lambda *_: {"train_step": build})
    monkeypatch.setattr(switches.timing, "seconds_to_warm", lambda: 0.2)
    command = ["--shapes", "tiny", "--repeats", "1", "--out", str(tmp_path), "--only"]
    switches.main([*command, "text embeddings,precision of the teacher"])
    before = rows_of(tmp_path)
    assert [row["switch"] for row in before] == ["text embeddings", "precision of the teacher"]
    assert warm == [0.2, 0.01]
    switches.main([*command, "latents,text embeddings"])
    after = rows_of(tmp_path)
    assert after[1] == before[1] and after[1]["made_by"] != after[0]["made_by"]
    assert [row["switch"] for row in after] == [*(r["switch"] for r in before), "latents"]
    assert "does not compute what" in after[2]["failed"] and "ms" not in after[2]
    assert "error: train_step: latents = encoded in each" in capsys.readouterr().err
    del built[:]
    switches.main([*command, "latents", "--dtype", "bfloat16"])  # in float32 first
    assert built == ["moments", "images"]
    assert "encoded in each step in float32 does not compute" in capsys.readouterr().err


def test_two_states_of_the_largest_model_are_not_held_at_once(monkeypatch):
    import switches

    monkeypatch.setattr(switches.jax, "default_backend", lambda: "gpu")
    assert switches.in_turns("sd15") and not switches.in_turns("sdxl")


def test_every_value_that_is_not_the_default_is_a_switch():
    import switches
    from ours import Setup

    from slam_jax.models.execution import Execution

    setup = Setup(dtype="float32")
    found = {(s.name, s.value): s for s in switches.switches(setup)}
    assert len(found) == len(switches.switches(setup)) == 4 + 2 + 2 + 2 + 4
    assert found["execution.attention", "cudnn"].platform == "gpu"
    assert found["execution.attention", "splash"].platform == "tpu"
    for (name, value), switch in found.items():
        changed = switch.setup(setup)
        if name.startswith("execution."):
            assert changed == dataclasses.replace(setup, execution=Execution(attention=value))
            assert value != Execution().attention
        elif switch.batch == "moments":
            assert changed != setup and changed.execution is None
    assert not found["method.gammas_per_subpath", "4"].same
    assert found["precision", "bfloat16"].setup(setup).dtype == "bfloat16"
    for network in ("teacher", "target", "student"):
        changed = found[f"precision of the {network}", "bfloat16"].setup(setup)
        assert changed == dataclasses.replace(setup, **{f"{network}_dtype": "bfloat16"})
    row = switches.measure(found["execution.attention", "cudnn"], "train_step", None, None, None)
    assert row["left_out"] == "needs a gpu"
