"""The emoji teacher that comes with the repository, and the student of it that `make demo-emoji`
makes, here of few steps."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from doc_commands import start
from PIL import Image
from stock_pipeline import drawn_by_both

from slam_jax.commands import train
from slam_jax.config.command_line import read_recipe
from slam_jax.config.validate import freeze
from slam_jax.evaluation.prompts import read_prompts

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "assets/emoji_teacher"
SIZE = 32
SMALL = [
    "--config.data.teacher_count=16",
    "--config.data.teacher_steps=2",
    "--config.data.teacher_batch=16",
    "--config.training.steps=2",
    "--config.training.sample_every=0",
    "--config.evaluation.samples=0",
    "--config.evaluation.student_steps=(4,)",
    "--config.evaluation.teacher_steps=(2,)",
]


def test_the_recipe_names_what_is_there():
    """The prompts of the ladder are among those that the teacher was trained on."""
    config = freeze(read_recipe("emoji"))
    assert ROOT / config.teacher.path == TEACHER
    path = ROOT / config.data.source.removeprefix("teacher:")
    prompts = read_prompts(path).texts
    held_out = read_prompts(TEACHER / "held_out.txt").texts
    assert len(prompts) == 2543 and len(held_out) == 245 and not set(prompts) & set(held_out)
    assert set(config.evaluation.prompts) <= set(prompts)


def test_the_teacher_is_small_and_says_where_it_comes_from():
    sizes = [path.stat().st_size for path in TEACHER.rglob("*") if path.is_file()]
    assert sum(sizes) <= 12e6
    card = (TEACHER / "README.md").read_text()
    facts = json.loads((TEACHER / "facts.json").read_text())
    assert f"{facts['psnr']:.1f} dB" in card and "slam-jax pretrain --config emoji_teacher" in card
    for licence in ("Apache-2.0", "MIT"):
        assert licence in card
    found = json.loads((ROOT / "benchmarks/results/emoji_teacher.json").read_text())
    for name in ("trained on", "held out"):
        (row,) = found[name]["results"]
        assert row["retrieval_choices"] == 100 and f"{row['retrieval']:.0%} " in card
    for name in ("train", "held_out"):
        assert f"{found['judge'][name]['retrieval']:.0%}" in card


@pytest.mark.slow
def test_the_stock_pipeline_draws_it_too():
    texts = ["noto emoji of green apple", "fluent emoji of octopus"]
    drawn, theirs = drawn_by_both(TEACHER, texts, 10)
    assert drawn.shape == (2, SIZE, SIZE, 3) and np.abs(drawn - theirs).max() < 2 / 255
    apple, octopus = theirs
    assert apple[8:24, 8:24].mean(axis=(0, 1)).argmax() == 1  # green
    assert theirs[:, :2].mean() > 0.9  # on white


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_demo_ends_with_pictures_a_report_and_an_export_that_diffusers_draws(tmp_path):
    make = ["make", "--no-print-directory", "--dry-run"]  # as well below another make
    plan = start([*make, "demo-emoji", f"RUNS={tmp_path}"], ROOT)
    launched, drawn = plan.replace("\\\n", " ").splitlines()[-2:]
    assert launched.startswith("launch/local.sh configs/emoji.py")
    start([*launched.split(), *SMALL], ROOT)
    start(["bash", "-c", drawn], ROOT)
    assert np.asarray(Image.open(tmp_path / "emoji/green_apple.png")).std() > 1
    page = (tmp_path / "emoji/report.html").read_text()
    assert "noto emoji of green apple" in page
    export = [".venv/bin/python", "-m", "slam_jax", "export", "--workdir", tmp_path / "emoji"]
    said = start([*export, "--out", tmp_path / "export", "--verify"], ROOT)
    rows = re.findall(r"^ +\d+  ([\d.]+)$", said, re.M)
    assert len(rows) == 4 and max(map(float, rows)) <= 2


def test_a_teacher_without_autoencoder_is_refused_before_anything_is_written(tmp_path):
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(TEACHER, teacher)
    shutil.rmtree(teacher / "vae")
    arguments = ["--config", "emoji", f"--config.teacher.path={teacher}"]
    with pytest.raises(SystemExit) as stop:
        train.main([*arguments, "--workdir", str(run)])
    line = stop.value.code
    assert line.startswith(f"error: {teacher}") and "vae/config.json" in line and "\n" not in line
    assert not run.exists()
