"""The benchmarks of speed: their commands with little of everything, and that nothing is timed
which computes something else."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
FAST = {"median_s": 0.5, "low_s": 0.25, "high_s": 1.0, "repeats": 3}


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The scripts import each other as files of one folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture
def one_level(monkeypatch):
    """ "tiny" with one level in its UNet: compiling is what takes time here."""
    import shapes

    tiny = shapes.SHAPES["tiny"]
    unet = dataclasses.replace(
        tiny.unet,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(16,),
    )
    text = dataclasses.replace(tiny.text_encoders[0], num_hidden_layers=1)
    small = dataclasses.replace(tiny, unet=unet, text_encoders=(text,))
    monkeypatch.setitem(shapes.SHAPES, "tiny", small)


def test_a_measured_time_is_the_time_it_took():
    import timing

    calls = []

    def sleep(seconds):
        calls.append(seconds)
        time.sleep(seconds)

    found = timing.measure(sleep, 0.02, warm_up=3, repeats=4)
    assert found["repeats"] == 4 and len(calls) == 7
    assert 0.02 <= found["low_s"] <= found["median_s"] <= found["high_s"] < 0.2


def test_subjects_take_turns_and_nobody_is_always_first():
    import timing

    called = []
    names = {name: (lambda name=name: called.append(name)) for name in "ab"}
    found = timing.take_turns(names, warm_up=1, repeats=4)
    assert "".join(called) == "ab" + "abba" * 2
    assert found["a"]["repeats"] == found["b"]["repeats"] == 4


def test_a_device_is_warmed_for_as_long_as_asked():
    import timing

    assert timing.seconds_to_warm("gpu") == 60
    called = []
    began = time.perf_counter()
    timing.measure(lambda: called.append(time.sleep(0.01)), warm_up=1, repeats=1, warm_seconds=0.1)
    assert time.perf_counter() - began >= 0.1 and len(called) > 5


@pytest.mark.parametrize("turns", [True, False])
def test_what_computes_something_else_is_not_timed(turns):
    import race

    def subject(value):
        return race.Subject(lambda: (np.array([value]), lambda: None), "ours")

    close = {"ours": subject(1.0), "peer": subject(1.0009)}
    found = race.race(close, race.loss_difference, 2, 0.0, turns)
    assert found["peer"]["difference"] == pytest.approx(9e-4) and found["peer"]["repeats"] == 2
    for wrong in (1.0011, np.nan):
        with pytest.raises(race.ParityError, match="^peer does not compute what"):
            race.race({**close, "peer": subject(wrong)}, race.loss_difference, 2, 0.0, turns)


def test_pictures_may_be_two_of_255_apart():
    import race

    ours = np.full((1, 2, 2, 3), 0.5)
    spot = ours.copy()
    spot[0, 0, 0, 0] += 1.9 / 255
    assert race.picture_difference("x", ours, spot, "float32") == pytest.approx(1.9)
    spot[0, 0, 0, 0] += 0.2 / 255
    with pytest.raises(race.ParityError, match="2.1 of 255"):
        race.picture_difference("x", ours, spot, "float32")
    assert race.picture_difference("x", ours, spot, "bfloat16") == pytest.approx(2.1 / 12)


def report_of(folder, name="speed_tiny_cpu.json"):
    return json.loads((folder / name).read_text())


@pytest.mark.slow
def test_the_speed_of_everything(tmp_path, one_level, monkeypatch):
    import parts
    import peer_steps
    import peers
    import speed

    canned = json.dumps({"compile_s": 3.0})
    process = subprocess.CompletedProcess([], 0, stdout=f"note\n{canned}\n")
    monkeypatch.setattr(parts.subprocess, "run", lambda *_, **__: process)
    monkeypatch.setattr(peers.torch, "set_num_threads", lambda count: None)
    command = ["--shapes", "tiny", "--quick", "--out", str(tmp_path)]
    speed.main(command)
    report = report_of(tmp_path)
    found = report["parts"]
    assert found.keys() == set(parts.PARTS)
    steps = found["train_step"]["subjects"]
    assert steps.keys() == {"ours", "ours_from_pictures", "authors", "tuned"}
    assert 0 < steps["tuned"]["difference"] < 1e-4 and 0 < steps["authors"]["difference"] < 1e-4
    assert steps["ours"]["samples_per_second"] == pytest.approx(2 / steps["ours"]["median_s"])
    (drawn,) = found["sampler"]["rows"]
    assert drawn["steps"] == 2 and 0 < drawn["subjects"]["stock"]["difference"] < 0.1
    assert found["vae"]["rows"][0]["subjects"]["stock"]["ms"] > 0
    assert found["compile"]["with_cache"]["compile_s"] == 3
    assert found["loader"]["samples_per_second"] > 0
    made = found["vae"]["made_by"]
    assert made["versions"].keys() >= {"jax", "torch"} and made["threads"]["torch"] >= 1
    assert "| torch: tuned step |" in (tmp_path / "speed.md").read_text()

    times = parts.one_step("tiny", 2, "float32")
    assert times["compile_s"] > 0 and times["trace_and_lower_s"] > 0

    # Peers that are broken: another average, and another bias.
    monkeypatch.setattr(peer_steps, "EMA", 0.5)
    with pytest.raises(SystemExit, match="^error: train_step: tuned does not compute what"):
        speed.main([*command, "--only", "train_step", "--peers", "tuned"])
    filled = peers._filled

    def broken(*arguments):
        vae = filled(*arguments)
        with contextlib.suppress(AttributeError):
            vae.decoder.conv_out.bias.data += 0.02
        return vae

    monkeypatch.setattr(peers, "_filled", broken)
    with pytest.raises(SystemExit, match="^error: vae: stock does not compute what"):
        speed.main([*command, "--only", "vae"])
    assert report_of(tmp_path) == report


@pytest.mark.slow
def test_what_a_switch_gains(tmp_path, one_level):
    import switches

    command = ["--shapes", "tiny", "--quick", "--out", str(tmp_path)]
    switches.main([*command, "--only", "latents"])
    found = report_of(tmp_path, "switches_tiny_cpu.json")["switches"]
    (latents,) = found["train_step"]
    assert latents["value"] == "encoded in each step" and latents["difference"] < 1e-3
    assert latents["gain"] == pytest.approx(latents["ms"] / latents["default_ms"])
    assert "| latents | encoded in each step |" in (tmp_path / "switches.md").read_text()
    with pytest.raises(SystemExit, match="--only remat: expected execution.attention, "):
        switches.main([*command, "--only", "remat"])


def test_every_value_that_is_not_the_default_is_a_switch():
    import switches
    from ours import Setup

    from slam_jax.models.execution import Execution

    setup = Setup(dtype="float32")
    found = {(s.name, s.value): s for s in switches.switches(setup)}
    assert len(found) == len(switches.switches(setup)) == 3 + 1 + 1 + 1 + 2 + 2 + 2 + 1
    assert found["execution.attention", "cudnn"].platform == "gpu"
    for (name, value), switch in found.items():
        changed = switch.setup(setup)
        if name.startswith("execution."):
            assert getattr(changed.execution, name.removeprefix("execution.")) == value
            assert value != getattr(Execution(), name.removeprefix("execution."))
        elif switch.batch == "moments":
            assert changed != setup and changed.execution is None
    assert not found["method.gammas_per_subpath", "4"].same
    assert found["precision", "bfloat16"].setup(setup).dtype == "bfloat16"
    row = switches.measure(found["execution.attention", "cudnn"], "train_step", None, None)
    assert row["left_out"] == "needs a gpu"


def test_tables_are_made_of_results(tmp_path, capsys):
    import table

    made = {"command": "python it", "dtype": "bfloat16", "load_average": 0.04}
    ours = {**FAST, "like": "ours", "difference": 0.0, "samples_per_second": 8.0, "tflops": 400.0}
    tuned = {**ours, "samples_per_second": 4.0, "difference": 0.002, "mfu": 0.25}
    part = {"batch": 4, "steps_in_a_call": 10, "subjects": {"ours": ours, "tuned": tuned}}
    report = {"shapes": "sd15", "device": {"name": "H100"}, "parts": {"train_step": part}}
    part["made_by"] = made
    (tmp_path / "speed_sd15_h100.json").write_text(json.dumps(report))
    left_out = {"switch": "execution.attention", "value": "cudnn", "left_out": "needs a gpu"}
    row = {"switch": "latents", "value": "x", "ms": 6.0, "default_ms": 4.0, "gain": 1.5}
    report = {"shapes": "sd15", "device": {"name": "H100"}, "made_by": made}
    report["switches"] = {"train_step": [left_out, row]}
    (tmp_path / "switches_sd15_h100.json").write_text(json.dumps(report))
    table.main(["--out", str(tmp_path)])
    text = (tmp_path / "speed.md").read_text()
    assert "| torch: tuned step | 4 | 2.00x | 25 to 100 | 400 | 25.0% | 2.0e-03 |" in text
    assert text.startswith("### sd15 on H100\n")
    text = (tmp_path / "switches.md").read_text()
    assert "| execution.attention | cudnn |  | needs a gpu |" in text
    assert "| latents | x | 4 | 6 | 1.50x |" in text


def test_without_torch_it_says_how_to_get_the_peers(monkeypatch, capsys, tmp_path):
    import parts
    import speed

    monkeypatch.setattr(speed.result, "installed", lambda names: [])
    options = speed.parse(["--out", str(tmp_path)], parts.PARTS)
    assert speed.run_of(options).peers == ()
    note = capsys.readouterr().err
    assert note == (
        "note: without authors, tuned, stock: pip install torch diffusers transformers\n"
    )
    with pytest.raises(SystemExit):
        speed.parse(["--only", "train"], parts.PARTS)
    assert "--only train: expected train_step, sampler, vae, " in capsys.readouterr().err


def test_the_commands_are_those_of_the_scripts():
    """The first lines of each script say how to start it."""
    for name in ("speed", "switches", "table"):
        text = (ROOT / f"benchmarks/{name}.py").read_text()
        assert f"PYTHONPATH=. python benchmarks/{name}.py" in text.split('"""')[1]
    assert sys.version_info >= (3, 11)
