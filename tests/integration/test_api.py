"""The package in a notebook: three lines each."""

import json
import subprocess
import sys

import numpy as np
import pytest
from digits_runs import TEACHER

import slam_jax
from slam_jax.base.errors import InputError

pytestmark = pytest.mark.slow  # whole runs

# As in digits_runs, so that the programs of both are compiled once.
SMALL = {
    "teacher": TEACHER,
    "training": {"steps": 6, "batch_size": 16, "sample_every": 0},
    "evaluation": {"samples": 50, "teacher_steps": (3,), "student_steps": (1, 2)},
}


@pytest.fixture(scope="module")
def workdir(made_once):
    return made_once("api", lambda folder: slam_jax.distill("digits", folder, **SMALL))


def test_a_student_is_distilled_loaded_and_draws(workdir):
    student = slam_jax.load(workdir)
    images = slam_jax.sample(student, ["3", "7", "7"], steps=2, seed=1)
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8
    # The same prompt, another noise; and the same again.
    assert (images[1] != images[2]).any()
    assert (slam_jax.sample(student, ["3", "7"], steps=2, seed=1) == images[:2]).all()
    assert (slam_jax.sample(student, "3", steps=2, seed=1) == images[:1]).all()


def test_a_teacher_draws_with_guidance_and_a_student_does_not(workdir):
    teacher, student = slam_jax.load(workdir / "teacher"), slam_jax.load(workdir)
    plain, guided = (slam_jax.sample(teacher, "3", 3, guidance=g) for g in (1, 7.5))
    assert (plain != guided).any()
    assert (slam_jax.sample(teacher, "3", 3) == guided).all()
    with pytest.raises(InputError, match="--guidance 3: a student has its guidance built in"):
        slam_jax.sample(student, "3", guidance=3)
    with pytest.raises(InputError, match="prompt 'cat'"):
        slam_jax.sample(student, "cat")


def test_evaluate_gives_the_rows_of_the_report(workdir):
    student, teacher = slam_jax.load(workdir), slam_jax.load(workdir / "teacher")
    options = dict(samples=50, batch=100, student_steps=(1, 2), teacher_steps=(3,))
    rows = slam_jax.evaluate(student, teacher, **options)
    assert [(row["model"], row["steps"]) for row in rows] == [
        ("teacher", 3),
        ("student", 1),
        ("student", 2),
    ]
    report = json.loads((workdir / "summary.json").read_text())["results"]
    for row, reported in zip(rows, report, strict=True):
        assert {**row, "model": 0} == pytest.approx({**reported, "model": 0}, rel=1e-4, abs=1e-5)
    with pytest.raises(InputError, match="expected a student and its teacher"):
        slam_jax.evaluate(teacher, student)


def test_a_change_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config.training.stepz: no such option; did you mean"):
        slam_jax.distill("digits", tmp_path / "run", training={"stepz": 3})
    with pytest.raises(InputError, match="no such recipe, expected digits"):
        slam_jax.distill("digitz", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_importing_the_package_imports_nothing_else():
    code = "import slam_jax, sys; assert 'jax' not in sys.modules; slam_jax.slam_loss; import jax"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        slam_jax.distil  # noqa: B018
