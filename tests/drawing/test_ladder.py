"""The step ladder: who draws what from which noise, and what is measured of it."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from slam_jax.config.options import Evaluation
from slam_jax.data.reference import Reference
from slam_jax.drawing.ladder import Artists, Ladder
from slam_jax.families.pipeline import DENOISER

SEED = 7
PROMPTS = ("a", "b", "c")


@pytest.fixture
def drawn():
    """What the samplers were asked for: (who, weights, prompts, seed, first row, steps)."""
    return []


@pytest.fixture
def artists(drawn):
    """Samplers whose pictures say which noise and how many steps they are of."""

    def sampler(who):
        def draw(frozen, params, batch, start, *, steps):
            drawn.append((who, params, batch["texts"], *start, steps))
            rows = start[1] + np.arange(len(batch["texts"]))
            pictures = np.sin(rows)[:, None, None, None] * np.ones((1, 4, 6, 1))
            return pictures + 0.01 * steps * (who == "student")

        return draw

    pipeline = SimpleNamespace(
        example_prompts=PROMPTS, prompts=lambda texts: {"texts": tuple(texts)}
    )
    return Artists(pipeline, {DENOISER: "teacher"}, sampler("teacher"), sampler("student"))


OPTIONS = Evaluation(teacher_steps=(8, 50), student_steps=(1, 4))


def test_the_teacher_draws_once_in_its_most_steps(artists, drawn):
    ladder = Ladder(artists, OPTIONS, SEED)
    first, second = ladder.draw("student"), ladder.draw("later")
    assert list(first) == list(second) == [("teacher", 50), ("student", 1), ("student", 4)]
    assert first["teacher", 50] is second["teacher", 50]
    assert drawn == [
        ("teacher", "teacher", PROMPTS, SEED, 0, 50),
        *(("student", "student", PROMPTS, SEED, 0, steps) for steps in (1, 4)),
        *(("student", "later", PROMPTS, SEED, 0, steps) for steps in (1, 4)),
    ]


def test_metrics_without_real_pictures_are_named_by_steps(artists, tmp_path):
    ladder = Ladder(artists, OPTIONS, SEED)
    measured = ladder.save(tmp_path / "new" / "ladder.png", "student")
    expected = {"rmse_to_teacher_1": 0.01, "rmse_to_teacher_4": 0.04}
    expected |= {"fd_to_teacher_1": 24 * 0.01**2, "fd_to_teacher_4": 24 * 0.04**2}
    assert measured == {name: pytest.approx(x, rel=1e-3) for name, x in expected.items()}
    with Image.open(tmp_path / "new" / "ladder.png") as picture:
        # Three rows of pictures of 4 x 6 pixels, each of ten, with gaps of four.
        assert picture.height == 4 + 3 * (4 * 10 + 4)
        assert picture.width > 3 * (6 * 10 + 4)
    chosen = Evaluation(student_steps=(1,), metrics=("rmse_to_teacher",))
    measured = Ladder(artists, chosen, SEED).save(tmp_path / "ladder.png", "student")
    assert measured.keys() == {"rmse_to_teacher_1"}


def test_the_report_draws_a_batch_at_a_time_from_noise_that_no_ladder_has(artists, drawn):
    options = Evaluation(teacher_steps=(50, 8), student_steps=(1,), samples=7)
    rows = Ladder(artists, options, SEED).report("student", None)
    assert [(row["model"], row["steps"]) for row in rows] == [
        *(("teacher", 50), ("teacher", 8), ("student", 1))
    ]
    assert [row["rmse_to_teacher"] for row in rows] == [0, 0, pytest.approx(0.01)]
    # The last batch is filled with what it has.
    batches = [(PROMPTS, 3), (PROMPTS, 6), (("a", "a", "a"), 9)]
    asked = [("teacher", "teacher", 50), ("teacher", "teacher", 8), ("student", "student", 1)]
    assert drawn == [
        (who, params, texts, SEED, first, steps)
        for who, params, steps in asked
        for texts, first in batches
    ]


def test_the_report_has_the_number_of_samples_that_was_asked_for(artists):
    options = Evaluation(teacher_steps=(2,), student_steps=(1,), samples=100, batch=30)
    rng = np.random.default_rng(0)
    reference = Reference(rng.uniform(-1, 1, (60, 4, 6, 1)), ("a", "b", "c") * 20)
    rows = Ladder(artists, options, SEED).report("student", reference)
    assert list(rows[0]) == [
        *("model", "steps", "fd_pixels", "fd_features", "label_accuracy"),
        *("fd_to_teacher", "rmse_to_teacher"),
    ]


@pytest.mark.parametrize(
    ("options", "prompts"),
    [
        ({}, "abc"),
        (dict(prompts=("x", "y")), "xy"),
        (dict(batch=2), "ab"),
        (dict(batch=7), "aaabbcc"),
        (dict(batch=45), ("a" * 7 + "b" * 7 + "c" * 6) * 2 + "aaaaa"),  # 20 in a row
    ],
)
def test_a_row_of_the_ladder_shows_every_prompt(artists, options, prompts):
    assert "".join(Ladder(artists, Evaluation(**options), SEED).prompts) == prompts
