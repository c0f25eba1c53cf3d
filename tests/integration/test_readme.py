"""The commands of the README run as they stand there, made small by overrides."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.replace("slam-jax ", "python -m slam_jax ")
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# They need the tiny teacher and the run that `make demo-sd` leaves.
STABLE_DIFFUSION = re.compile(r"tiny_|at_step_")
SMALL = [
    "--config.teacher.network.block_out_channels=(8,)",
    "--config.teacher.training.steps=4",
    "--config.teacher.training.optimizer.warmup_steps=2",
    "--config.training.steps=4",
    "--config.training.sample_every=0",
    "--config.evaluation.samples=50",
    "--config.evaluation.teacher_steps=(2,)",
]


def start(arguments, folder):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache/jax"),
    }
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_digits_command_in_its_order(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    commands = [
        shlex.split(line)
        for line in COMMANDS
        if line.startswith("python -m slam_jax") and not STABLE_DIFFUSION.search(line)
    ]
    assert len(commands) >= 4
    for _, *arguments in commands:
        small = SMALL if arguments[1] == "slam_jax.main" else []
        start([sys.executable, *arguments, *small], tmp_path)
    assert (tmp_path / "grid.png").exists() and (tmp_path / "runs/contact_sheet.png").exists()
    assert (tmp_path / "runs/digits/samples/ladder.png").exists()
    assert (tmp_path / "runs/lcm/export").is_dir()
    assert (tmp_path / "runs/digits_paper/export").is_dir()
    ours = [block for block in PYTHON_BLOCKS if "diffusers" not in block]
    assert ours
    for block in ours:
        start([sys.executable, "-c", block], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_stable_diffusion_demo_and_the_commands_that_follow_it(tmp_path):
    assert "make demo-sd" in COMMANDS
    start(["make", "demo-sd", f"RUNS={tmp_path}/runs"], ROOT)
    assert (tmp_path / "runs/tiny_sd/lighthouse.png").exists()
    commands = [shlex.split(line) for line in COMMANDS if STABLE_DIFFUSION.search(line)]
    assert len(commands) >= 8
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for _, *arguments in commands:
        few = ["--config.training.steps=2", "--config.training.sample_every=0"]
        start(
            [sys.executable, *arguments, *(few if arguments[1] == "slam_jax.main" else [])],
            tmp_path,
        )
    assert (tmp_path / "runs/tiny_from_latents/export/model_index.json").exists()
    assert all((tmp_path / f"runs/{name}.png").exists() for name in ("sea", "night", "teacher"))
    assert (tmp_path / "runs/sampler.npy").exists()
    assert "PYTHONPATH=. python benchmarks/start_up.py" in COMMANDS
    small = ["--repeats", "1", "--out", "results"]
    start([sys.executable, ROOT / "benchmarks/start_up.py", *small], tmp_path)
    report = json.loads((tmp_path / "results/start_up.json").read_text())
    seconds = {k: v["median_s"] for k, v in report["process_start_to_first_picture"].items()}
    assert 0 < seconds["artifact, warm"] < seconds["artifact, cold"]
    stock = next(block for block in PYTHON_BLOCKS if "diffusers" in block)
    start([sys.executable, "-c", stock], tmp_path)


@pytest.mark.slow
def test_launcher_and_benchmark(tmp_path):
    started = [line for line in COMMANDS if line.startswith(("launch/", "python benchmarks/"))]
    assert len(started) == 2
    for line in started:
        program, *arguments = shlex.split(line)
        if program == "python":
            folders = ["--runs", "runs", "--out", "results", "--seeds", "2", "--"]
            start([sys.executable, str(ROOT / arguments[0]), *folders, *SMALL], tmp_path)
            assert (tmp_path / "results/slam_vs_lcm.md").read_text().count("±") > 20
        else:
            start([str(ROOT / program), *arguments, *SMALL, "--workdir", tmp_path / "run"], ROOT)
            assert (tmp_path / "run/summary.md").exists()


@pytest.mark.slow
def test_checkpoint_benchmark(tmp_path):
    assert "PYTHONPATH=. python benchmarks/checkpoint.py" in COMMANDS
    small = ["--megabytes", "1", "--turns", "2", "--out", tmp_path]
    start([sys.executable, "benchmarks/checkpoint.py", *small], ROOT)
    (state,) = json.loads((tmp_path / "checkpoint.json").read_text())["states"]
    assert state["arrays"] == 701 and state["median_seconds"]["save_returns"] > 0


@pytest.mark.slow
def test_loading_benchmark(tmp_path):
    assert "PYTHONPATH=. python benchmarks/load_sd15.py" in COMMANDS
    small = ["--small", "--folder", tmp_path / "sd15", "--out", tmp_path / "results"]
    start([sys.executable, "benchmarks/load_sd15.py", *small], ROOT)
    report = json.loads((tmp_path / "results/load_sd15.json").read_text())
    assert report["from_page_cache"]["seconds"] > 0 and not (tmp_path / "sd15").exists()


@pytest.mark.slow
def test_data_benchmark(tmp_path):
    assert "PYTHONPATH=. python benchmarks/data.py" in COMMANDS
    assert (ROOT / "benchmarks/results/data.md").read_text() in README
    small = ["--small", "--minutes", "0.05", "--folder", tmp_path, "--out", tmp_path / "results"]
    start([sys.executable, "benchmarks/data.py", *small], ROOT)
    report = json.loads((tmp_path / "results/data.json").read_text())
    assert report["jpeg"]["ratio"] > 0 and report["cached"]["samples_per_second"] > 0
    assert not list(tmp_path.glob("tmp*"))


def test_make_targets_exist():
    targets = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert {"demo", "demo-sd", "test", "test-fast", "lint"} <= set(targets)
    for target in targets:
        plan = start(["make", "--dry-run", target], ROOT)
        assert "slam_jax" in plan or "launch/" in plan or "-m" in plan


def test_other_commands_are_only_the_installation():
    known = (
        "make ",
        "python -m slam_jax",
        "python benchmarks/",
        "python runs/tiny_sampler/draw.py",
        "launch/",
        "pip install -r ",
        "source ",
        "PYTHONPATH=. python benchmarks/",
    )
    assert [line for line in COMMANDS if line and not line.startswith(known)] == []
