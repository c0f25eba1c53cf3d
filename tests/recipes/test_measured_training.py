"""Metrics of a network during training: the same as measured afterwards, kept between starts, and
what ends a run."""

import json

import colours
import numpy as np
import pytest
from helpers import interrupt_in_step

import slam_jax
from slam_jax.base.errors import InputError
from slam_jax.config.options import Evaluation
from slam_jax.drawing.metrics.frechet import between
from slam_jax.drawing.metrics.metric import Metric
from slam_jax.drawing.metrics.registry import METRICS
from slam_jax.drawing.seen import extractor_of
from slam_jax.features.extract import Extractor
from slam_jax.training.loop import Interrupted

pytestmark = pytest.mark.slow  # whole runs

# Steps and batch of digits_runs, so that the programs of both are compiled once.
SMALL = {
    "training": {"steps": 6, "batch_size": 16, "sample_every": 2, "checkpoint_every": 2},
    "evaluation": {
        "batch": 10,
        "pictures": 24,
        "samples": 20,
        "teacher_steps": (4, 2),
        "student_steps": (1, 2),
        "metrics": ("rmse_to_teacher", "fd_colours_teacher"),
    },
}


@pytest.fixture(scope="module")
def changed(digits_teacher):
    """Options of a run, some of them others."""

    def changed(**groups):
        options = {name: {**SMALL[name], **groups.get(name, {})} for name in SMALL}
        return {"teacher": digits_teacher, **options}

    return changed


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        colours.register(patch.setitem)
        yield


@pytest.fixture(scope="module")
def interrupted_run(tmp_path_factory, changed):
    """A run that Ctrl-C stopped after its first ladder, and that went on; what networks saw in each
    start, in numbers of pictures."""
    workdir, seen = tmp_path_factory.mktemp("measured") / "run", []
    images = Extractor.images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Extractor, "images", lambda s, i: seen.append(len(i)) or images(s, i))
        with patch.context() as stopping, pytest.raises(Interrupted):
            interrupt_in_step(stopping, 3)
            slam_jax.distill("digits", workdir, **changed())
        first = sum(seen)
        seen.clear()
        slam_jax.distill("digits", workdir, resume=True, **changed())
    return workdir, first, sum(seen)


def rows_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


def test_the_numbers_are_those_of_the_pictures_that_the_student_draws(
    interrupted_run, digits_teacher
):
    workdir, _, _ = interrupted_run
    student, teacher = slam_jax.load(workdir), slam_jax.load(digits_teacher["path"])
    # A row of the ladder shows all digits; then they begin anew.
    prompts = [str(place % 10) for place in range(24)]
    network = colours.open_colours("0")

    def seen(images):
        rgb = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
        return np.asarray(network.apply(network.params, np.stack(list(map(network.prepare, rgb)))))

    of_teacher = seen(slam_jax.sample(teacher, prompts, 4, guidance=student.method.w + 1))
    last = rows_of(workdir)[6]
    for steps in (1, 2):
        expected = between(seen(slam_jax.sample(student, prompts, steps)), of_teacher)
        assert last[f"fd_colours_teacher_{steps}"] == pytest.approx(expected, rel=1e-3)
    expected = between(seen(slam_jax.sample(teacher, prompts, 2, guidance=3)), of_teacher)
    of_fewer = json.loads((workdir / "teacher_metrics.json").read_text())["metrics"]
    assert of_fewer["fd_colours_teacher_2"] == pytest.approx(expected, rel=1e-3)
    assert of_fewer.keys() == {f"{name}_2" for name in SMALL["evaluation"]["metrics"]}


def test_the_report_has_them_too(interrupted_run):
    workdir, _, _ = interrupted_run
    results = json.loads((workdir / "summary.json").read_text())["results"]
    row = next(r for r in results if (r["model"], r["steps"]) == ("student", 2))
    last = rows_of(workdir)[6]["fd_colours_teacher_2"]
    assert row["fd_colours_teacher"] == pytest.approx(last, rel=1e-5)


def test_the_teachers_pictures_are_seen_once_in_a_runs_life(interrupted_run):
    workdir, first, second = interrupted_run
    # The teacher in 4 steps, in 2, and the student in 1 and 2.
    assert first == 24 * 4
    # Two more ladders, and of the report the four rows that it has.
    assert second == 24 * (2 * 2 + 4)
    assert len(list((workdir / "features").iterdir())) == 1


def test_the_cost_is_in_the_metrics(interrupted_run):
    rows = rows_of(interrupted_run[0])
    assert all(rows[step]["evaluation_seconds"] > 0 for step in (2, 4, 6))


class Scored(Metric):
    """One that a single picture is enough for."""

    name, title, networks = "score", "score", ("colours",)

    def compute(self, drawn):
        return float(drawn.features["model", "colours"].array().mean())


class Worse(Metric):
    """A metric that is lowest in the second of its measurements."""

    name, title, measured = "worse", "worse", 0

    def compute(self, drawn):
        self.measured += 1
        return abs(self.measured - 2)


def test_a_run_without_patience_ends_and_stays_ended(changed, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(METRICS, "worse", Worse())
    training = {
        **SMALL["training"],
        "sample_every": 1,
        "patience": 3,
        "best_metric": "worse_2",
    }
    evaluation = {
        **SMALL["evaluation"],
        "metrics": ("worse",),
        "teacher_steps": (2,),
        "student_steps": (2,),
    }
    options = changed(training=training, evaluation=evaluation)
    slam_jax.distill("digits", tmp_path / "run", **options)
    said = capsys.readouterr().err
    assert "worse_2 has not become lower 3 times; the student ends at step 5" in said
    assert max(rows_of(tmp_path / "run")) == 5
    assert (tmp_path / "run/export").is_dir()
    slam_jax.distill("digits", tmp_path / "run", resume=True, **options)
    assert max(rows_of(tmp_path / "run")) == 5


def test_networks_see_the_ladder_where_no_number_of_pictures_is_given():
    options = {**SMALL["evaluation"], "metrics": ("score",), "pictures": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS, "score", Scored())
        assert extractor_of(Evaluation(**options)) is not None


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (
            {"pictures": 6},
            r"config.evaluation.pictures = 6, expected 7 or more for fd_colours_teacher",
        ),
        (
            {"metrics": ("fd_colours_reference",)},
            "config.evaluation.metrics: fd_colours_reference compares with real pictures",
        ),
        ({"weights": ("colour=3",)}, "config.evaluation.weights colour=3: expected NETWORK=PATH"),
        ({"prompts_file": "nowhere.txt"}, "config.evaluation.prompts_file: nowhere.txt: no such"),
        ({"prompts_file": "x", "prompts": ("3",)}, "expected prompts or prompts_file, not both"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(changed, tmp_path, evaluation, message):
    options = changed(evaluation={**SMALL["evaluation"], **evaluation})
    with pytest.raises(InputError, match=message):
        slam_jax.distill("digits", tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_prompts_from_a_file(changed, tmp_path):
    (tmp_path / "prompts.txt").write_text("3\n7\n")
    options = changed(
        evaluation={**SMALL["evaluation"], "prompts_file": str(tmp_path / "prompts.txt")},
        training={**SMALL["training"], "sample_every": 6},
    )
    slam_jax.distill("digits", tmp_path / "run", **options)
    rows = json.loads((tmp_path / "run/samples/step_000006/rows.json").read_text())
    assert rows["prompts"] == ["3"] * 5 + ["7"] * 5
