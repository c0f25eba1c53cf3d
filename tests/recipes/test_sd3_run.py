"""Runs with a teacher of Stable Diffusion 3, from the command line to pictures of the export."""

import json

import numpy as np
import pytest
import tiny_runs
from own_pictures_runs import options

import slam_jax
from slam_jax.formats.lora_file import FILE

LEAVES = {"full": "model_index.json", "lora": FILE}


@pytest.mark.nightly
@pytest.mark.parametrize("kind", LEAVES)
def test_a_run_leaves_a_student_that_draws(teachers, tmp_path, kind):
    flags = ["--config.method.conditioning=snr", f"--config.student.kind={kind}"]
    flags += ["--config.training.sample_every=0", "--config.evaluation.teacher_steps=(1,)"]
    flags += ["--config.training.steps=2"]
    if kind == "lora":  # on pictures that the teacher draws, and without a text encoder
        (tmp_path / "prompts.txt").write_text("a small dog\ntwo cats")
        flags += options(tmp_path / "prompts.txt", count=8)
        flags.append("--config.data.teacher_text_embeddings=True")
    tiny_runs.launch(teachers["sd35"], tmp_path / "run", *flags, config="sd35")
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses and np.all(np.isfinite(losses)) and min(losses) > 0
    assert (tmp_path / "run/export" / LEAVES[kind]).exists()
    student = slam_jax.load(tmp_path / "run")
    assert student.method.conditioning == "snr" and student.is_student
    image = slam_jax.sample(student, "a small dog", steps=1)
    assert image.shape[-3:] == (64, 64, 3) and image.std() > 1
