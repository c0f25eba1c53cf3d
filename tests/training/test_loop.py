"""The loop: going on after any end, what is passed over or skipped, when it saves."""

import itertools
import json
import os
import signal
import time
from contextlib import closing
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import interrupt_in_step
from points import BATCH, OPTIMIZER, Points, setup

from slam_jax.base.errors import InputError
from slam_jax.config.options import Optimizer, Training
from slam_jax.data.batches import Batches
from slam_jax.formats.safetensors import load_arrays
from slam_jax.parallel.sharding import shard
from slam_jax.training import loop
from slam_jax.training.checkpoint import Checkpoints
from slam_jax.training.checkpoint_files import best_step, steps_in
from slam_jax.training.loop import Interrupted, TrainingRun, fit
from slam_jax.training.step import init_state

BESIDE = ("draw_samples", "report", "wandb")


def run_loop(folder, steps, source=None, max_rejects=0.1, **changes):
    """Trains with other options of the training, others of `setup`, and what BESIDE names."""
    step, _, mesh = setup(**changes.pop("setup", {}))
    init = partial(init_state, tx=OPTIMIZER, mesh=mesh)
    beside = {name: changes.pop(name) for name in BESIDE if name in changes}
    training = Training(steps=steps, batch_size=BATCH, log_every=2, checkpoint_every=4, **changes)
    data = Batches(source or Points(), BATCH, seed=0, max_rejects=max_rejects)
    run = TrainingRun(step, init, data, mesh, training, folder, "test", {}, **beside)
    frozen = shard({"f": np.zeros((), np.float32)}, mesh)
    return fit(run, {"w": np.ones(2, np.float32)}, frozen)


def test_a_run_that_goes_on_holds_one_state(tmp_path, monkeypatch):
    """No second copy of weights, EMA and optimiser stays on the devices."""
    held, original = [], loop.MetricLog.add

    def count(log, metrics):
        held.append(sum(array.shape == (2,) for array in jax.live_arrays()))
        original(log, metrics)

    monkeypatch.setattr(loop.MetricLog, "add", count)
    run_loop(tmp_path / "run", steps=4)
    run_loop(tmp_path / "run", steps=8)
    assert max(held[4:]) <= max(held[:4])


def test_interrupted_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    whole = run_loop(tmp_path / "whole", steps=12)
    interrupt_in_step(monkeypatch, 7)
    with pytest.raises(Interrupted, match="step 7 of 12"):
        run_loop(tmp_path / "parts", steps=12)
    monkeypatch.undo()
    parts = run_loop(tmp_path / "parts", steps=12)
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    steps = [row["step"] for row in read_metrics(tmp_path / "parts")]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_a_stop_that_ends_the_data_first_saves_too(tmp_path, monkeypatch):
    """As when a scheduler sends SIGTERM to the processes that read, too."""
    whole, original = run_loop(tmp_path / "whole", steps=12), Batches.iterate

    def ended(*arguments):
        with closing(original(*arguments)) as batches:
            for _ in range(6):
                yield next(batches)
        os.kill(os.getpid(), signal.SIGTERM)
        raise InputError("points: a process that reads it was killed")

    monkeypatch.setattr(Batches, "iterate", ended)
    with pytest.raises(Interrupted, match="stopped at step 6 of 12"):
        run_loop(tmp_path / "parts", steps=12)
    monkeypatch.undo()
    assert steps_in(tmp_path / "parts/checkpoints")[-1] == 6
    parts = run_loop(tmp_path / "parts", steps=12)
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


def test_a_stop_that_comes_after_the_last_step_is_heard(tmp_path, monkeypatch):
    original = Checkpoints.save

    def save(checkpoints, step, *arguments):
        original(checkpoints, step, *arguments)
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(Interrupted, match="stopped at step 12 of 12"):
        run_loop(tmp_path, steps=12)
    assert int(run_loop(tmp_path, steps=12).step) == 12


def test_metrics_of_a_run_killed_after_its_checkpoint_are_written_once(tmp_path):
    run_loop(tmp_path, steps=4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0}\n{"step": 8, "lo')
    run_loop(tmp_path, steps=8)
    assert [row["step"] for row in read_metrics(tmp_path)] == [2, 4, 6, 8]
    assert all(row["loss"] > 0 and row["samples_per_second"] > 0 for row in read_metrics(tmp_path))
    assert list((tmp_path / "tensorboard").iterdir())


class Holed(Points):
    """Points of which some are not numbers."""

    def read(self, indices, seeds):
        batch, rejects = super().read(indices, seeds)
        batch["x"][np.isin(indices, [3, 77])] = np.nan
        return batch, rejects


def holes():
    """The steps, of the first 16, that have one of these points."""
    with closing(Batches(Holed(), BATCH, seed=0).iterate(0)) as batches:
        taken = [next(batches)["x"] for _ in range(16)]
    return taken, [i for i, x in enumerate(taken, 1) if np.isnan(x).any()]


def test_a_step_that_is_not_finite_changes_nothing_and_leaves_its_batch(tmp_path, capsys):
    taken, steps = holes()
    assert 1 <= len(steps) <= 2 and steps[-1] < 16
    state = run_loop(tmp_path, steps=16, source=Holed())
    assert int(state.skipped) == len(steps) and int(state.step) == 16
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert int(state.opt_state[1][0].count) == 16 - len(steps)  # Adam's
    for step in steps:
        kept = load_arrays(tmp_path / f"replay/step_{step:06d}.process_0_of_1.safetensors")
        np.testing.assert_array_equal(kept["x"], taken[step - 1])
    assert len(list((tmp_path / "replay").iterdir())) == len(steps)
    rows = read_metrics(tmp_path)
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert [row["skipped"] for row in rows] == [
        sum(step <= row["step"] for step in steps) for row in rows
    ]
    assert f"note: step {steps[0]} of the test changed nothing: loss nan" in capsys.readouterr().err


def test_a_stop_at_such_a_step_leaves_its_batch_too(tmp_path, monkeypatch):
    _, (first, *_) = holes()
    interrupt_in_step(monkeypatch, first)
    with pytest.raises(Interrupted, match=f"step {first} of 16"):
        run_loop(tmp_path, steps=16, source=Holed())
    assert [path.name for path in (tmp_path / "replay").iterdir()] == [
        f"step_{first:06d}.process_0_of_1.safetensors"
    ]


def test_too_many_steps_that_are_not_finite_stop_the_run_where_it_can_go_on(tmp_path):
    _, (first, *_) = holes()
    with pytest.raises(InputError, match=r"1 steps of the test were not finite.*max_skipped"):
        run_loop(tmp_path, steps=16, source=Holed(), max_skipped=1)
    (saved,) = steps_in(tmp_path / "checkpoints")[-1:]
    assert saved in (first, first + 1)
    whole = run_loop(tmp_path / "whole", steps=16, source=Holed())
    parts = run_loop(tmp_path, steps=16, source=Holed(), max_skipped=10)
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


@pytest.mark.parametrize("minutes", [0.0, 1.0])
def test_a_checkpoint_is_made_when_the_last_is_too_old(tmp_path, monkeypatch, minutes):
    """A clock that is set back or forward does not matter."""
    now, jumps, clock = itertools.count(0, 20), itertools.cycle([3600, -3600]), time.time
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    saved, original = [], Checkpoints.save

    def save(checkpoints, step, *arguments):
        saved.append(step)
        original(checkpoints, step, *arguments)

    monkeypatch.setattr(Checkpoints, "save", save)
    run_loop(tmp_path, steps=20, checkpoint_minutes=minutes)
    by_number = {4, 8, 12, 16, 20}
    assert by_number <= set(saved) and len(saved) == len(set(saved))
    assert (set(saved) > by_number) == (minutes > 0)


def test_best_checkpoints_are_kept_beside_the_newest(tmp_path):
    run_loop(
        tmp_path,
        steps=20,
        sample_every=4,
        keep_checkpoints=1,
        keep_best=2,
        best_metric="rmse_to_teacher_2",
        draw_samples=lambda state, step: {"rmse_to_teacher_2": abs(step - 9.0)},
    )
    assert steps_in(tmp_path / "checkpoints") == [8, 12, 20]
    assert best_step(tmp_path / "checkpoints", "rmse_to_teacher_2") == 8


def read_metrics(folder):
    return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


def test_data_that_are_not_those_of_the_checkpoint_are_refused(tmp_path):
    run_loop(tmp_path, steps=4)
    with pytest.raises(InputError, match="points: not the examples"):
        run_loop(tmp_path, steps=8, source=Points("257"))


def test_what_is_passed_over_is_said_once_and_counted(tmp_path, capsys):
    run_loop(tmp_path, steps=8, source=Points(damaged=[3, 200]))
    rejected = [row.get("rejected_examples", 0) for row in read_metrics(tmp_path)]
    assert rejected == sorted(rejected) and rejected[-1] >= 1
    said = capsys.readouterr().err
    assert said.count(": damaged point") == 1 and "damaged point (first: " in said


def test_a_source_that_is_mostly_damaged_stops_the_run(tmp_path):
    with pytest.raises(
        InputError, match=r"points: \d+ of \d+ examples cannot be used.*max_rejects"
    ):
        run_loop(tmp_path, steps=40, source=Points(damaged=range(0, 256, 3)), max_rejects=0.24)
    # What was trained until then is saved: it goes on where more is borne.
    (saved,) = steps_in(tmp_path / "checkpoints")[-1:]
    assert 4 < saved < 40 and saved % 4
    source = Points(damaged=range(0, 256, 3))
    whole = run_loop(tmp_path / "whole", steps=saved + 2, source=source, max_rejects=1)
    parts = run_loop(tmp_path, steps=saved + 2, source=source, max_rejects=1)
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    rows = read_metrics(tmp_path / "whole")[-1], read_metrics(tmp_path)[-1]
    assert rows[0]["rejected_examples"] == rows[1]["rejected_examples"] > 0


def test_the_report_is_asked_for_when_its_row_is_there(tmp_path):
    """At each step ladder, also where nothing is measured of it."""
    told = []

    def report():
        told.append([row["step"] for row in read_metrics(tmp_path)][-1])

    run_loop(tmp_path, steps=10, sample_every=3, draw_samples=lambda *_: {}, report=report)
    assert told == [3, 6, 9]
    assert [row["step"] for row in read_metrics(tmp_path)] == [2, 3, 4, 6, 8, 9, 10]


def test_the_learning_rate_of_a_row_is_that_of_its_steps(tmp_path):
    """By its formula: a rise from half of it in two steps, then half a cosine down to 2%; steps
    that were skipped do not count."""
    optimizer = Optimizer(learning_rate=0.1, schedule="cosine", warmup_steps=2)
    run_loop(
        tmp_path,
        steps=16,
        source=Holed(),
        optimizer=optimizer,
        setup=dict(optimizer=optimizer, steps=16),
    )
    _, holed = holes()
    updates = np.array([i - sum(step < i + 1 for step in holed) for i in range(16)])
    down = 0.1 * (0.02 + 0.98 * (1 + np.cos(np.pi * (updates - 2) / 14)) / 2)
    expected = np.where(updates < 2, 0.05 * (1 + updates / 2), down)
    rates = [row["learning_rate"] for row in read_metrics(tmp_path)]
    np.testing.assert_allclose(rates, expected.reshape(8, 2).mean(axis=1), rtol=1e-5)


def test_the_first_pictures_say_that_samplers_are_compiled(tmp_path, capsys):
    """And their time is not in the time to come: a step takes far less than drawing here."""
    bars = []

    def draw(state, step):
        bars.append(capsys.readouterr().err)
        time.sleep(0.3)
        return {}

    run_loop(tmp_path, steps=4, sample_every=2, draw_samples=draw)
    assert "compiling the samplers, once" in bars[0]
    assert "compiling the samplers" not in bars[1]
