"""How the benchmarks of speed take times, and that nothing is timed which computes something
else."""

import contextlib
import gc
import os
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The scripts import each other as files of one folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(gc, "collect", lambda: 0)  # a second each, with torch imported


def test_a_measured_time_is_the_time_it_took():
    import timing

    calls = []

    def sleep(seconds):
        calls.append(seconds)
        time.sleep(seconds)

    found = timing.measure(sleep, 0.02, warm_up=3, repeats=4)
    assert found["repeats"] == 4 and len(calls) == 7
    assert 0.02 <= found["low_s"] <= found["median_s"] <= found["high_s"] < 0.2


def test_subjects_take_turns_and_nobody_is_always_first():
    import timing

    called = []
    names = {name: (lambda name=name: called.append(name)) for name in "ab"}
    found = timing.take_turns(names, warm_up=1, repeats=4)
    assert "".join(called) == "ab" + "abba" * 2
    assert found["a"]["repeats"] == found["b"]["repeats"] == 4


def test_a_device_is_warmed_for_as_long_as_asked():
    import timing

    assert timing.seconds_to_warm("gpu") == 60
    called = []
    began = time.perf_counter()
    timing.measure(lambda: called.append(time.sleep(0.01)), warm_up=1, repeats=1, warm_seconds=0.1)
    assert time.perf_counter() - began >= 0.1 and len(called) > 5


@pytest.mark.parametrize("turns", [True, False])
def test_what_computes_something_else_is_not_timed(turns):
    import race

    def subject(*losses):
        return race.Subject(lambda: (np.array(losses), lambda: None), "ours")

    close = {"ours": subject(1.0, 1.0), "peer": subject(1.000009, 1.00009)}
    found = race.race(close, race.loss_difference, 2, 0.0, turns)
    assert found["peer"]["difference"] == pytest.approx(9e-5) and found["peer"]["repeats"] == 2
    for wrong in ((1.000011, 1.0), (1.0, 1.00011), (1.0, np.nan)):
        with pytest.raises(race.ParityError, match="^peer does not compute what"):
            race.race({**close, "peer": subject(*wrong)}, race.loss_difference, 2, 0.0, turns)
    compiled = {**close, "peer_compiled": subject(1.1, 1.0)}
    found = race.race(compiled, race.loss_difference, 2, 0.0, turns)
    assert found["peer"]["repeats"] == 2 and "median_s" not in found["peer_compiled"]
    assert "peer_compiled does not compute what" in found["peer_compiled"]["failed"]


@pytest.mark.parametrize("turns", [True, False])
def test_a_peer_that_fails_costs_only_its_own_row(turns, capsys):
    import race

    def subject(call, like="ours"):
        return race.Subject(lambda: (np.ones(1), call), like)

    calls = iter([0, 1, 2, 1 / 3, 4])

    def later():
        return 1 / next(calls)  # what is refused comes in the first call

    def unmade():
        raise MemoryError("no room\nfor it")

    subjects = {
        "ours": subject(lambda: None),
        "late": subject(later),
        "unmade": race.Subject(unmade, "ours"),
        "orphan": subject(lambda: None, "unmade"),
        "fine": subject(lambda: None),
    }
    found = race.race(subjects, race.loss_difference, 2, 0.0, turns)
    assert list(found) == list(subjects)
    assert found["ours"]["repeats"] == found["fine"]["repeats"] == 2
    assert found["late"] == {"like": "ours", "failed": "ZeroDivisionError: division by zero"}
    assert found["unmade"] == {"like": "ours", "failed": "MemoryError: no room"}
    assert "unmade, which it is compared with, failed" in found["orphan"]["failed"]
    assert "note: late failed: ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(MemoryError):
        race.race({**subjects, "ours": race.Subject(unmade, "ours")}, None, 2, 0.0, turns)


def test_in_float32_a_difference_is_refused_and_what_cannot_be_computed_is_said():
    import race

    like = dict.fromkeys("abc", "a")
    subjects = {"a": lambda: np.ones(2), "b": lambda: np.array([1, 1.00005]), "c": lambda: 1 / 0}
    found = race.agree_in_float32(subjects, like, race.loss_difference)
    assert found["b"]["float32_difference"] == pytest.approx(5e-5)
    assert found["c"] == {"float32_left_out": "ZeroDivisionError: division by zero"}
    with pytest.raises(race.ParityError, match="^b in float32 does not compute"):
        race.agree_in_float32(
            {**subjects, "b": lambda: np.array([1, 1.001])}, like, race.loss_difference
        )
    found = race.agree_in_float32({"a": subjects["c"], "b": subjects["b"]}, like, None)
    assert found["b"] == {"float32_left_out": "nor was a computed"}


def test_how_far_pictures_may_be_apart():
    import race

    ours = np.full((1, 2, 2, 3), 0.5)
    spot = ours.copy()
    spot[0, 0, 0, 0] += 0.9e-4
    assert race.picture_difference("x", ours, spot, "float32") == pytest.approx(0.9e-4 * 255)
    spot[0, 0, 0, 0] += 0.2e-4
    with pytest.raises(race.ParityError, match="0.028.* of 255"):
        race.picture_difference("x", ours, spot, "float32")
    for close, within in ((0.9e-5, True), (1.1e-5, False)):
        with contextlib.nullcontext() if within else pytest.raises(race.ParityError):
            race.own_picture_difference("x", ours, ours + close, "float32")
    for mean, within in ((1.9, True), (2.1, False)):  # of 255
        with contextlib.nullcontext() if within else pytest.raises(race.ParityError):
            race.picture_difference("x", ours, ours + mean / 255, "bfloat16")


def test_a_model_holds_nothing_of_jaxs():
    """Else a GPU's memory stays with jax when its peers are timed."""
    import jax
    import shapes

    model = shapes.make_model("tiny")
    held = [model.student, model.ema, model.frozen, model.pipeline.schedule]
    assert {type(leaf) for leaf in jax.tree.leaves(held)} == {np.ndarray}
