"""The judge of digits on images it never saw, and which metrics are measured."""

import numpy as np
import pytest
from helpers import normal
from sklearn.model_selection import train_test_split

from slam_jax.base.options import OptionError
from slam_jax.config.options import Config, Evaluation, Training
from slam_jax.data import digits
from slam_jax.data.reference import Reference
from slam_jax.drawing.metrics.classifier import classifier_of
from slam_jax.drawing.metrics.frechet import between
from slam_jax.drawing.metrics.metric import Drawn, Metric
from slam_jax.drawing.metrics.registry import METRICS, check_metrics, measure
from slam_jax.drawing.report import to_markdown


@pytest.fixture(scope="module")
def reference():
    images, labels = digits.load()
    return Reference(images, tuple(map(str, labels)))


@pytest.fixture(scope="module")
def judge(reference):
    return classifier_of(reference)


@pytest.fixture(scope="module")
def held_out(reference):
    """The fifth of the digits that `Classifier.fit` says it sets aside; labels are numbers."""
    labels = np.array(reference.labels)
    _, images, _, labels = train_test_split(
        reference.images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    return images, labels.astype(int)


def texts(labels):
    return tuple(map(str, labels))


def test_classifier_reads_digits_it_never_saw(judge, held_out):
    images, labels = held_out
    assert judge.accuracy > 0.95
    assert judge.label_accuracy(images, texts(labels)) == pytest.approx(judge.accuracy)
    assert judge.label_accuracy(images, texts((labels + 1) % 10)) < 0.05
    half_wrong = np.where(np.arange(len(labels)) % 2, labels, (labels + 1) % 10)
    assert 0.4 < judge.label_accuracy(images, texts(half_wrong)) < 0.6


def test_features_are_the_hidden_layer_that_the_answer_is_read_from(judge, held_out):
    images, _ = held_out
    features = judge.features(images)
    assert features.shape == (len(images), 64)
    assert features.min() == 0
    logits = features @ judge.network.coefs_[1] + judge.network.intercepts_[1]
    expected = judge.network.predict(images.reshape(len(images), -1))
    np.testing.assert_array_equal(logits.argmax(1), expected.astype(int))


def test_the_judge_is_fitted_once(reference, judge):
    assert classifier_of(reference) is judge


def test_all_metrics_of_real_digits(reference, judge):
    images, labels = reference.images[:400], reference.labels[:400]
    measured = measure(Drawn(images, labels, images + 0.5, reference))
    assert list(measured) == [name for name, metric in METRICS.items() if not metric.networks]
    flat, real = (x.reshape(len(x), -1) for x in (images, reference.images))
    assert measured == {
        "fd_pixels": pytest.approx(between(flat, real)),
        "fd_features": pytest.approx(
            between(judge.features(images), judge.features(reference.images))
        ),
        "label_accuracy": judge.label_accuracy(images, labels),
        "fd_to_teacher": pytest.approx(64 * 0.5**2),  # the same covariance, another mean
        "rmse_to_teacher": pytest.approx(0.5),
    }


@pytest.mark.parametrize(
    ("size", "count", "names"),
    [
        ((8, 8, 1), 3, {"fd_to_teacher", "rmse_to_teacher"}),
        ((32, 32, 1), 3, {"fd_to_teacher", "rmse_to_teacher"}),
        ((33, 32, 1), 9, {"rmse_to_teacher"}),  # a covariance of a million numbers
        ((8, 8, 1), 2, {"rmse_to_teacher"}),
    ],
)
def test_what_cannot_be_computed_is_left_out(size, count, names):
    images, teacher = normal(8, 2, count, *size)
    drawn = Drawn(images, ("",) * count, teacher)
    assert set(measure(drawn)) == names
    difference = ((images - teacher) ** 2).mean() ** 0.5
    assert measure(drawn, ["rmse_to_teacher"]) == {"rmse_to_teacher": pytest.approx(difference)}
    if names == {"rmse_to_teacher"}:
        assert measure(drawn, ["fd_to_teacher"]) == {}


class Brightness(Metric):
    name, title = "brightness", "Brightness"

    def applies(self, drawn):
        return True

    def compute(self, drawn):
        return float(drawn.images.mean())


def test_a_metric_that_is_added_is_measured_and_can_choose_checkpoints(monkeypatch):
    monkeypatch.setitem(METRICS, "brightness", Brightness())
    images = normal(9, 3, 64, 64, 3)
    measured = measure(Drawn(images, ("",) * 3, images))
    assert measured == {"rmse_to_teacher": 0, "brightness": pytest.approx(images.mean())}
    rows = [{"model": "student", "steps": 4, **measured}]
    assert to_markdown(rows).splitlines() == [
        "| model | steps | RMSE to teacher | Brightness |",
        "| --- | --- | --- | --- |",
        f"| student | 4 | 0.000 | {images.mean():.3f} |",
    ]
    options = Training(best_metric="brightness_2")
    check_metrics(Config(training=options, evaluation=Evaluation(metrics=("brightness",))))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (
            dict(evaluation=Evaluation(metrics=("rmse_to_teacher", "fidelity"))),
            "evaluation.metrics",
        ),
        (dict(training=Training(best_metric="rmse_to_teacher")), "training.best_metric"),
        (dict(training=Training(best_metric="rmse_to_teacher_3")), "training.best_metric"),
        (dict(training=Training(best_metric="fidelity_4")), "training.best_metric"),
    ],
)
def test_a_metric_that_does_not_exist_is_refused_with_those_there_are(changes, key):
    with pytest.raises(OptionError) as caught:
        check_metrics(Config(**changes))
    assert caught.value.key == key and "rmse_to_teacher" in caught.value.expected
    check_metrics(Config(training=Training(best_metric="rmse_to_teacher_4")))
