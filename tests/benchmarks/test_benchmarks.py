"""The benchmarks of speed: their commands with little of everything, and what they make of it."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import types
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
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


def report_of(folder, name="speed_tiny_cpu.json"):
    return json.loads((folder / name).read_text())


@pytest.mark.nightly
def test_the_speed_of_everything(tmp_path, one_level, monkeypatch):
    import parts
    import peer_steps
    import peers
    import speed
    import starts

    canned = json.dumps({"compile_s": 3.0})
    process = subprocess.CompletedProcess([], 0, stdout=f"note\n{canned}\n")
    monkeypatch.setattr(starts.subprocess, "run", lambda *_, **__: process)
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
    assert found["compile"]["with_cache"]["compile_s"]["median_s"] == 3
    assert found["loader"]["samples_per_second"] > 0
    made = found["vae"]["made_by"]
    assert made["versions"].keys() >= {"jax", "torch"} and made["threads"]["torch"] >= 1
    assert "| torch: tuned step |" in (tmp_path / "speed.md").read_text()

    times = starts.one_step("tiny", 2, "float32")
    assert times["compile_s"] > 0 and times["trace_and_lower_s"] > 0

    # Peers that are broken: one that does not learn, and another bias.
    half = [*command, "--dtype", "bfloat16", "--only", "train_step", "--peers", "tuned"]
    monkeypatch.setattr(peer_steps, "LEARNING_RATE", 0.0)
    with pytest.raises(SystemExit, match="^error: train_step: tuned in float32 does not compute"):
        speed.main(half)
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


@pytest.mark.nightly
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


def test_each_network_computes_in_its_own_dtype(monkeypatch):
    import ours
    import shapes

    model, steps = shapes.make_model("tiny"), []
    monkeypatch.setattr(ours, "make_train_step", lambda *arguments: steps.append(arguments))
    setup = ours.Setup(teacher_dtype="bfloat16", student_dtype="float16")
    batch = ours.batch_for(shapes.make_batch(model, 1), with_pictures=False)
    _, _, frozen, _ = ours.train_arguments(model, batch, setup)
    assert steps[0][-1] == ("float16", "float32")
    ours.train_arguments(model, batch, ours.Setup(target_dtype="bfloat16"))
    assert steps[1][-1] == ("float32", "bfloat16")
    for part, dtype in (("denoiser", "bfloat16"), ("vae", "float32"), ("text_encoder", "float32")):
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(frozen[part])} == {dtype}


def test_the_tuned_teacher_is_not_under_autocast(one_level, monkeypatch):
    import ours
    import parts
    import peer_steps
    import peers
    import shapes

    model, seen = shapes.make_model("tiny"), {}
    monkeypatch.setattr(peers.torch, "set_num_threads", lambda count: None)
    nets = peers.networks(model, peers.prepare(1), "bfloat16", channels_last=True)
    for name in ("unet", "student", "ema"):

        def note(module, _, name=name):
            seen[name] = peers.torch.is_autocast_enabled("cpu")

        getattr(nets, name).register_forward_pre_hook(note)
    batch = ours.batch_for(shapes.make_batch(model, 2), with_pictures=False)
    draws = peer_steps.given_draws(ours.step_draws(model, 2, 0, parts.Slam()), nets.device)
    loss = peer_steps.tuned_step(model, nets, batch, parts.Slam())(draws)
    assert np.isfinite(float(loss)) and seen == {"unet": False, "student": True, "ema": True}


def test_torch_computes_where_jax_does(monkeypatch, capsys, tmp_path):
    import parts
    import peers
    import speed

    monkeypatch.setattr(peers.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(peers.torch.cuda, "is_available", lambda: True)
    assert peers.prepare(1).type == "cpu"  # as jax
    monkeypatch.setattr(peers.jax, "default_backend", lambda: "gpu")
    assert peers.prepare(1).type == "cuda"
    monkeypatch.setattr(peers.torch.cuda, "is_available", lambda: False)
    device = {"platform": "gpu"}
    monkeypatch.setattr(speed.result, "device", lambda: device)
    options = speed.parse(["--out", str(tmp_path)], parts.PARTS)
    assert speed.run_of(options).peers == ()
    note = "torch does not see the GPU that jax computes on\n"
    assert capsys.readouterr().err.endswith(note)


def test_starts_are_repeated_each_cold_one_in_a_new_folder(monkeypatch):
    import starts

    folders = []

    def start(*_, env, **__):
        folders.append(env["JAX_COMPILATION_CACHE_DIR"])
        canned = json.dumps({"compile_s": float(len(folders))})
        return subprocess.CompletedProcess([], 0, stdout=canned)

    monkeypatch.setattr(starts.subprocess, "run", start)
    run = types.SimpleNamespace(shapes="tiny", batch=2, dtype="float32", repeats=10)
    found = starts.first_steps(run)
    assert len(set(folders[:3])) == 3 and folders[3:] == folders[:1] * 3
    assert found["cold"]["compile_s"] == {"median_s": 2, "low_s": 1, "high_s": 3, "repeats": 3}
    assert found["with_cache"]["compile_s"]["median_s"] == 5


@pytest.mark.slow
def test_how_long_attention_takes(tmp_path):
    import attention

    attention.main(["--shapes", "tiny", "--quick", "--out", str(tmp_path)])
    report = report_of(tmp_path, "attention_tiny_float32_cpu.json")
    assert [row["direction"] for row in report["rows"]] == ["forward", "backward"]
    found = report["rows"][1]["found"]
    assert found["cudnn"] == "no GPU" and found["xla"]["repeats"] == 2
    assert found[attention.TORCH]["median_s"] > 0
    page = (tmp_path / "attention_tiny_float32_cpu.md").read_text()
    assert "| 40 | 256 x 256 | backward |" in page


def test_tables_are_made_of_results(tmp_path, capsys):
    import table

    made = {"command": "python it", "dtype": "bfloat16", "load_average": 0.04}
    ours = {**FAST, "like": "ours", "difference": 0.0, "samples_per_second": 8.0, "tflops": 400.0}
    tuned = {**ours, "samples_per_second": 4.0, "difference": 0.002, "mfu": 0.25}
    failed = {"like": "ours", "failed": "OutOfMemoryError: no room"}
    subjects = {"ours": ours, "tuned": tuned, "authors": failed}
    part = {"batch": 4, "steps_in_a_call": 10, "subjects": subjects}
    drawn = {"batch": 1, "subjects": {"ours": {**ours, "ms": 500.0}, "stock": failed}}
    start = {"cold": {"whole_process_s": FAST}, "with_cache": {"whole_process_s": FAST}}
    report = {"shapes": "sd15", "device": {"name": "H100"}, "parts": {"train_step": part}}
    report["parts"] |= {"vae": {"rows": [drawn], "made_by": made}}
    report["parts"] |= {"compile": {**start, "made_by": made}}
    part["made_by"] = made
    (tmp_path / "speed_sd15_h100.json").write_text(json.dumps(report))
    left_out = {"switch": "execution.attention", "value": "cudnn", "left_out": "needs a gpu"}
    row = {"switch": "latents", "value": "x", "ms": 6.0, "default_ms": 4.0, "gain": 1.5}
    row["note"] = "x losses"
    refused = {"switch": "latents", "value": "y", "failed": "no room"}
    rows = [{**r, "made_by": {**made, "batch": 4}} for r in (left_out, row, refused)]
    report = {"shapes": "sd15", "device": {"name": "H100"}, "switches": {"train_step": rows}}
    (tmp_path / "switches_sd15_h100.json").write_text(json.dumps(report))
    table.main(["--out", str(tmp_path)])
    text = (tmp_path / "speed.md").read_text()
    assert "| torch: tuned step | 4 | 2.00x | 25 to 100 | 400 | 25.0% | 2.0e-03 |" in text
    assert "| torch: the authors' step | OutOfMemoryError: no room |  |" in text
    assert "| 1 |  | diffusers | OutOfMemoryError: no room |  |" in text
    assert "| whole process | 0.50 (0.25 to 1.00) | 0.50 (0.25 to 1.00) |" in text
    assert text.startswith("### sd15 on H100\n")
    text = (tmp_path / "switches.md").read_text()
    assert "| execution.attention | cudnn |  | needs a gpu |" in text
    assert "| latents | x | 4 | 6 | 1.50x |" in text and "| latents | y |  | no room |" in text
    assert text.count("`python it`: bfloat16, batch 4; load average 0.0 before") == 1
    text = (tmp_path / "fast.md").read_text()
    row = "| sd15, H100 | training step, batch 4 | 8 samples/s | 4 samples/s (tuned step) | 2.00x |"
    assert row in text
    assert "from pictures" not in text  # the authors' step failed
    assert (
        "| sd15, H100 | latents: x | 1.50x |  |  | x losses |" in text and "latents: y" not in text
    )


def test_docs_show_what_was_measured(tmp_path):
    """They include the tables of the results."""
    import table

    folder, page = ROOT / "benchmarks/results", (ROOT / "docs/performance.md").read_text()
    for path in (*folder.glob("speed_*.json"), *folder.glob("switches_*.json")):
        shutil.copy(path, tmp_path)
    table.write(tmp_path)
    assert (tmp_path / "fast.md").read_text().count("x |") > 20
    for name in ("speed.md", "switches.md", "fast.md"):
        assert (folder / name).read_text() == (tmp_path / name).read_text()
    report, words = json.loads((folder / "start_up.json").read_text()), " ".join(page.split())
    for name, who in (("artifact", "the exported sampler"), ("sample", "`slam-jax sample`")):
        found = report["process_start_to_first_picture"]
        warm, cold = (found[f"{name}, {kind}"]["median_s"] for kind in ("warm", "cold"))
        assert f"{who} {warm:.1f} s with its compiled program, {cold:.1f} s without" in words


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
    with pytest.raises(SystemExit):
        speed.parse(["--repeats", "0"], parts.PARTS)
    assert "--repeats: '0': expected 1 or more" in capsys.readouterr().err


def test_a_model_that_cannot_draw_stops_the_starts(tmp_path):
    import start_up

    with pytest.raises(SystemExit, match=r"nothing.* \(from: .* slam_jax export --artifact"):
        start_up.main(["--model", f"{tmp_path}/nothing", "--out", str(tmp_path)])


def test_the_commands_are_those_of_the_scripts():
    """The first lines of each script say how to start it."""
    for name in ("speed", "switches", "table", "attention", "start_up"):
        text = (ROOT / f"benchmarks/{name}.py").read_text()
        assert f"PYTHONPATH=. python benchmarks/{name}.py" in text.split('"""')[1]
    commands = (ROOT / "docs/performance.md").read_text().splitlines()
    for name in ("speed", "switches", "attention"):
        assert any(
            line.startswith(f"PYTHONPATH=. python benchmarks/{name}.py") for line in commands
        )
