"""The commands and the Python of the README and of docs/ run as they stand there, made small by
overrides."""

import json
import re
import shlex
import sys

import numpy as np
import pytest
from doc_commands import one_after_another, run, start
from doc_pages import DOCS, PAGES, ROOT, blocks

COMMANDS = [
    line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines() if line
]
INSTALLATION = ("make ", "pip install .", "source .venv/bin/activate")
BENCHMARKS = ("python benchmarks/", "PYTHONPATH=. python benchmarks/")
# It goes on until Ctrl-C; tests/serving/test_playground.py reads these lines.
SERVED = "slam-jax playground"
ELSEWHERE = (*INSTALLATION, *BENCHMARKS, "launch/", SERVED)
RUNS = [line for line in COMMANDS if not line.startswith(ELSEWHERE)]
# They need the tiny teacher and the run that `make demo-sd` leaves.
STABLE_DIFFUSION = re.compile(r"tiny_|at_step_|runs/sd\b")
TINY_DIGITS = [
    "--config.teacher.network.block_out_channels=(8,)",
    "--config.teacher.training.steps=4",
    "--config.teacher.training.optimizer.warmup_steps=2",
    "--config.training.steps=4",
    "--config.training.sample_every=0",
    "--config.evaluation.samples=50",
    "--config.evaluation.teacher_steps=(2,)",
]
SMALL_DISTILL = """
import slam_jax
whole = slam_jax.distill
training = {"steps": 4, "sample_every": 0}
teacher = {"steps": 4, "optimizer": {"warmup_steps": 2}}
slam_jax.distill = lambda *args, **changes: whole(*args, **changes, training=training,
    teacher={"network": {"block_out_channels": (8,)}, "training": teacher},
    evaluation={"samples": 50, "teacher_steps": (2,)})
"""
FEW_STEPS = ["--config.training.steps=2", "--config.training.sample_every=0"]
# Each number of steps is a program to compile.
FEW_ROWS = ["--config.evaluation.student_steps=(1,)"]


# tests/integration/test_main.py has the same commands by day, with networks that are smaller still.
@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_every_digits_command_in_its_order(tmp_path):
    commands = [line for line in RUNS if not STABLE_DIFFUSION.search(line)]
    assert len(commands) >= 7
    run(commands, tmp_path, [*TINY_DIGITS, *FEW_ROWS])
    assert (tmp_path / "grid.png").exists() and (tmp_path / "runs/contact_sheet.png").exists()
    assert (tmp_path / "runs/digits/samples/ladder.png").exists()
    assert all((tmp_path / f"runs/{name}/export").is_dir() for name in ("lcm", "digits_paper"))
    assert (tmp_path / "runs/best/config.json").exists()
    python = blocks(DOCS / "getting_started.md", "python")
    one_after_another([SMALL_DISTILL, *python], tmp_path)
    assert (tmp_path / "runs/notebook/summary.md").exists()


def follow_the_demo(commands, folder):
    """Runs the demo of Stable Diffusion, and commands behind it."""
    start(["make", "demo-sd", f"RUNS={folder}/runs"], ROOT)
    assert (folder / "runs/tiny_sd/lighthouse.png").exists()
    tiny = [line.replace("--config sd ", "--config sd:tiny ") for line in commands]
    tiny = [line.replace("=DATA", "=photographs") for line in tiny]
    run(tiny, folder, [*FEW_STEPS, *FEW_ROWS])


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_stable_diffusion_demo_and_what_follows_it_in_the_readme(tmp_path):
    readme = [line for line in RUNS if line in (ROOT / "README.md").read_text()]
    commands = [line for line in readme if STABLE_DIFFUSION.search(line)]
    assert "make demo-sd" in COMMANDS and len(commands) >= 3
    follow_the_demo(commands, tmp_path)
    assert (tmp_path / "runs/lighthouse.png").exists()
    assert (tmp_path / "runs/sd_student/model_index.json").exists()
    one_after_another(blocks(ROOT / "README.md", "python"), tmp_path)


# Each page's commands have tests of their own by day; here they follow one another as written.
@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_stable_diffusion_demo_and_all_the_commands_that_follow_it(tmp_path):
    commands = [line for line in RUNS if STABLE_DIFFUSION.search(line)]
    assert len(commands) >= 13
    follow_the_demo(commands, tmp_path)
    runs = tmp_path / "runs"
    assert (runs / "tiny_from_latents/export/model_index.json").exists()
    pictures = ("lighthouse", "sea", "night", "teacher", "lora")
    assert all((runs / f"{name}.png").exists() for name in pictures)
    assert (runs / "sampler.npy").exists()
    pages = ROOT / "README.md", DOCS / "stable_diffusion.md", DOCS / "lora.md"
    one_after_another([code for page in pages for code in blocks(page, "python")], tmp_path)


@pytest.mark.nightly
def test_what_is_added_in_the_page_on_extending_trains_draws_and_exports(tmp_path):
    added = blocks(DOCS / "extending.md", "python")
    assert len(added) == 4
    (tmp_path / "added.py").write_text("\n".join(added))
    (tmp_path / "guided.py").write_text(
        "import added\n"
        "from slam_jax.config.command_line import recipes_folder\n"
        "import runpy\n"
        "def get_config():\n"
        "    config = runpy.run_path(str(recipes_folder() / 'digits.py'))['get_config']()\n"
        "    config.name = 'guided'\n"
        "    config.method = dict(name='guidance', w=2.0)\n"
        "    return config\n"
    )
    best = ["--config.training.keep_best=1", "--config.training.best_metric=contrast_4"]
    best += ["--config.training.checkpoint_every=2"]
    best += ["--config.training.sample_every=2", "--config.evaluation.student_steps=(4,)"]
    drawn = ["--steps", "2", "--labels", "3", "--out", "three.png"]
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 40, 50, 3), np.uint8)
    np.savez(tmp_path / "three.npz", images=pictures, captions=["one", "two", "three"])
    items = [
        "import added",
        ["train", "--config", "guided.py", *TINY_DIGITS, *best],
        ["sample", "--model", "runs/guided", *drawn],
        ["inspect", "three.npz"],
    ]
    said = one_after_another(items, tmp_path)
    assert "contrast off" in (tmp_path / "runs/guided/summary.md").read_text()
    assert (tmp_path / "three.png").exists()
    assert "read            3 of them, of which 3 can be used" in said


@pytest.mark.nightly
def test_launcher(tmp_path):
    (line,) = (line for line in COMMANDS if line.startswith("launch/"))
    program, *arguments = shlex.split(line)
    start([str(ROOT / program), *arguments, *TINY_DIGITS, "--workdir", tmp_path / "run"], ROOT)
    assert (tmp_path / "run/summary.md").exists()


@pytest.mark.nightly
def test_start_up_benchmark(finished_sd, tmp_path):
    assert "PYTHONPATH=. python benchmarks/start_up.py" in COMMANDS
    small = ["--model", finished_sd, "--repeats", "1", "--out", tmp_path]
    start([sys.executable, "benchmarks/start_up.py", *small], ROOT)
    report = json.loads((tmp_path / "start_up.json").read_text())
    seconds = {k: v["median_s"] for k, v in report["process_start_to_first_picture"].items()}
    assert 0 < seconds["artifact, warm"] < seconds["artifact, cold"]


@pytest.mark.nightly
def test_checkpoint_benchmark(tmp_path):
    assert "PYTHONPATH=. python benchmarks/checkpoint.py" in COMMANDS
    small = ["--megabytes", "1", "--turns", "2", "--out", tmp_path]
    start([sys.executable, "benchmarks/checkpoint.py", *small], ROOT)
    (state,) = json.loads((tmp_path / "checkpoint.json").read_text())["states"]
    assert state["arrays"] == 701 and state["median_seconds"]["save_returns"] > 0


@pytest.mark.nightly
def test_loading_benchmark(tmp_path):
    assert "PYTHONPATH=. python benchmarks/load_sd15.py" in COMMANDS
    small = ["--small", "--folder", tmp_path / "sd15", "--out", tmp_path / "results"]
    start([sys.executable, "benchmarks/load_sd15.py", *small], ROOT)
    report = json.loads((tmp_path / "results/load_sd15.json").read_text())
    assert report["from_page_cache"]["seconds"] > 0 and not (tmp_path / "sd15").exists()


@pytest.mark.nightly
def test_data_benchmark(tmp_path):
    assert "PYTHONPATH=. python benchmarks/data.py" in COMMANDS
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
    known = (*INSTALLATION, *BENCHMARKS, "slam-jax ", "python runs/tiny_sampler/draw.py", "launch/")
    assert [line for line in COMMANDS if not line.startswith(known)] == []
    # The scripts that tests in tests/benchmarks/ and tests/training/ run.
    started = {
        line.split("benchmarks/")[1].split(".py")[0]
        for line in COMMANDS
        if ".py" in line and "benchmarks/" in line
    }
    assert started <= {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
