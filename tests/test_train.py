"""The step: one trace, stable placement, the EMA, the optimiser; the checkpoint; the loop."""

import json
import os
import signal
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import interrupt_in_step

from slam_jax import loop
from slam_jax.checkpoint import Checkpoints, steps_in
from slam_jax.config import Optimizer, Training
from slam_jax.data.batches import Batches
from slam_jax.data.rejects import Rejected, Rejects
from slam_jax.errors import InputError
from slam_jax.loop import Interrupted, fit
from slam_jax.sharding import make_mesh, put_batch, replicated
from slam_jax.train import init_state, make_optimizer, make_train_step, mean_by_bin

BATCH = 16


class Points:
    """256 points of a plane; those in `damaged` cannot be used."""

    name = "points"

    def __init__(self, identity="256", damaged=()):
        self.identity, self.damaged = identity, set(damaged)

    def __len__(self):
        return 256

    def read(self, indices, seeds):
        rejects = Rejects()
        for index in self.damaged & set(indices.tolist()):
            rejects.add(Rejected("damaged point", str(index)))
        return {
            "x": np.stack([np.sin(indices), np.cos(indices)], axis=1).astype(np.float32)
        }, rejects


def quadratic(params, ema, frozen, batch, examples, key):
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (2,)))(examples)
    losses = ((batch["x"] + 0.1 * noise - params["w"][None, :]) ** 2).sum(axis=1)
    return losses, {"distance_to_ema": jnp.abs(params["w"] - ema["w"]).sum() + 0 * frozen["f"]}


OPTIMIZER = make_optimizer(Optimizer(learning_rate=0.1), 100)


def setup(loss=quadratic, ema=0.9, mesh=None):
    mesh = mesh or make_mesh()
    state = init_state({"w": jnp.ones(2)}, OPTIMIZER, mesh)
    return make_train_step(loss, OPTIMIZER, ema, jax.random.key(0), BATCH, mesh), state, mesh


def run_loop(folder, steps, source=None, max_rejects=0.1, **changes):
    step, _, mesh = setup(**changes.pop("setup", {}))
    init = partial(init_state, tx=OPTIMIZER, mesh=mesh)
    training = Training(steps=steps, batch_size=BATCH, log_every=2, checkpoint_every=4, **changes)
    data = Batches(source or Points(), BATCH, seed=0, max_rejects=max_rejects)
    return fit(
        step,
        init,
        {"w": np.ones(2, np.float32)},
        {"f": jnp.zeros(())},
        data,
        mesh,
        training,
        folder,
        "test",
    )


def first_batches(count):
    with closing(Batches(Points(), BATCH, seed=0).iterate(0)) as batches:
        return [next(batches) for _ in range(count)]


def test_step_is_traced_once_and_keeps_the_shardings():
    traces = []

    def counted(*arguments):
        traces.append(1)
        return quadratic(*arguments)

    step, state, mesh = setup(counted)
    frozen = jax.device_put({"f": jnp.zeros(())}, replicated(mesh))
    placed = jax.tree.map(lambda a: a.sharding, state)
    for batch in first_batches(3):
        state, _ = step(state, frozen, put_batch(batch, mesh))
    assert len(traces) == 1
    assert jax.tree.all(jax.tree.map(lambda a, s: a.sharding == s, state, placed))
    assert int(state.step) == 3


def test_step_follows_the_definition_of_clipped_adamw_and_ema():
    step, state, mesh = setup(ema=0.75)
    (batch,) = first_batches(1)
    key = jax.random.fold_in(jax.random.key(0), 0)
    noise = np.stack([jax.random.normal(jax.random.fold_in(key, i), (2,)) for i in range(BATCH)])
    gradient = np.mean(2 * (np.ones(2) - batch["x"] - 0.1 * noise), axis=0)
    gradient = gradient / max(1.0, np.linalg.norm(gradient))
    expected = np.ones(2) - 0.1 * gradient / (np.abs(gradient) + 1e-8)  # Adam's first step
    state, metrics = step(state, {"f": jnp.zeros(())}, put_batch(batch, mesh))
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(state.ema["w"], 0.75 + 0.25 * expected, rtol=1e-5)
    assert metrics["distance_to_ema"] == 0


def test_losses_are_the_same_on_one_device_and_on_eight():
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    histories = []
    for mesh in (one, make_mesh()):
        step, state, _ = setup(mesh=mesh)
        losses = []
        for batch in first_batches(5):
            state, metrics = step(state, {"f": jnp.zeros(())}, put_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
        histories.append(losses)
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_warms_up_and_falls_as_its_name_says(schedule):
    options = Optimizer(learning_rate=1.0, schedule=schedule, warmup_steps=10, clip_norm=1e9)
    tx = make_optimizer(options, steps=110)
    state, sizes = tx.init(jnp.ones(1)), []
    for _ in range(110):
        # A constant gradient makes every Adam update as long as the learning rate.
        update, state = tx.update(jnp.ones(1), state, jnp.ones(1))
        sizes.append(-float(update[0]))
    assert np.all(np.diff(sizes[:11]) > 0) and sizes[10] == pytest.approx(1, rel=1e-3)
    middle = {"constant": 1.0, "linear": 0.51, "cosine": 0.51}[schedule]
    assert sizes[60] == pytest.approx(middle, rel=1e-2)
    assert sizes[109] == pytest.approx(1.0 if schedule == "constant" else 0.02, abs=0.012)


def test_mean_by_bin():
    means = mean_by_bin(jnp.array([1.0, 3.0, 5.0]), jnp.array([0, 0, 2]), 3, "b")
    assert means["b0"] == 2 and np.isnan(means["b1"]) and means["b2"] == 5


def test_checkpoint_round_trip_keeps_every_bit_and_the_newest(tmp_path):
    _, state, _ = setup()
    state = jax.tree.map(lambda a: a + 1, state)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state, {"next_index": 7 + step})
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["2", "3"]
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        restored, position = checkpoints.restore(state, replicated(make_mesh()))
    assert position == {"next_index": 10}
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, restored, state))


def test_checkpoint_of_another_model_names_the_array_and_both_shapes(tmp_path):
    _, state, mesh = setup()
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        checkpoints.save(5, state, {})
    tx = make_optimizer(Optimizer(), 100)
    wider = init_state({"w": jnp.ones(3)}, tx, mesh)
    with (
        Checkpoints(tmp_path / "c", keep=1) as checkpoints,
        pytest.raises(InputError, match=r"w has shape \(2,\), expected \(3,\)"),
    ):
        checkpoints.restore(wider, replicated(make_mesh()))


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


def test_metrics_of_a_run_killed_after_its_checkpoint_are_written_once(tmp_path):
    run_loop(tmp_path, steps=4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0}\n{"step": 8, "lo')
    run_loop(tmp_path, steps=8)
    assert [row["step"] for row in read_metrics(tmp_path)] == [2, 4, 6, 8]
    assert all(row["loss"] > 0 and row["samples_per_second"] > 0 for row in read_metrics(tmp_path))
    assert list((tmp_path / "tensorboard").iterdir())


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
