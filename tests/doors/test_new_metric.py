"""A metric from outside the package: it appears in report, metrics and keep-best by itself."""

import json

import pytest

import slam_jax
from slam_jax.base.errors import InputError
from slam_jax.drawing.metrics.metric import Metric
from slam_jax.drawing.metrics.registry import METRICS

pytestmark = pytest.mark.slow  # whole runs

SMALL = {
    "training": {
        "steps": 6,
        "batch_size": 16,
        "sample_every": 2,
        "checkpoint_every": 2,
        "keep_checkpoints": 1,
        "keep_best": 1,
        "best_metric": "brightness_2",
    },
    "evaluation": {"samples": 50, "teacher_steps": (3,), "student_steps": (1, 2)},
}


class Brightness(Metric):
    name, title = "brightness", "mean pixel"

    def compute(self, drawn):
        return float(drawn.images.mean())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, digits_teacher):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS, "brightness", Brightness())
        folder = tmp_path_factory.mktemp("brightness") / "run"
        slam_jax.distill("digits", folder, teacher=digits_teacher, **SMALL)
        yield folder


def test_it_appears_in_the_report(workdir, digits_teacher):
    rows = json.loads((workdir / "summary.json").read_text())["results"]
    assert all(-1 <= row["brightness"] <= 1 for row in rows)
    assert "| mean pixel |" in (workdir / "summary.md").read_text()
    student, teacher = slam_jax.load(workdir), slam_jax.load(digits_teacher["path"])
    (row, *_) = slam_jax.evaluate(student, teacher, teacher_steps=(3,), metrics=("brightness",))
    assert set(row) == {"model", "steps", "brightness"}


def test_it_appears_in_the_metrics_and_keeps_the_best(workdir):
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    values = {row["step"]: row["brightness_2"] for row in rows if "brightness_2" in row}
    assert len(values) == 3 and len(set(values.values())) > 1
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {6, min(values, key=values.get)}


def test_a_metric_that_does_not_exist_is_refused(tmp_path):
    for name in ("brightness", "fid"):
        options = {"evaluation": {**SMALL["evaluation"], "metrics": (name,)}}
        known = name in METRICS
        if not known:
            with pytest.raises(InputError, match=f"evaluation.metrics = '{name}', expected one of"):
                slam_jax.distill("digits", tmp_path / "run", **{**SMALL, **options})
    with pytest.raises(InputError, match="training.best_metric = 'fid_2', expected one of loss"):
        training = {**SMALL["training"], "best_metric": "fid_2"}
        slam_jax.distill("digits", tmp_path / "run", **{**SMALL, "training": training})
    assert not (tmp_path / "run").exists()
