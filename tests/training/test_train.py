"""The step: one trace, stable placement, the EMA, the optimiser."""

from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from points import BATCH, Points, quadratic, setup

from slam_jax.config.options import Optimizer
from slam_jax.data.batches import Batches
from slam_jax.method.method import sums_by_bin
from slam_jax.parallel.sharding import make_mesh, replicated, shard_batch
from slam_jax.training.step import make_optimizer


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
        state, _ = step(state, frozen, shard_batch(batch, mesh))
    assert len(traces) == 1
    assert jax.tree.all(jax.tree.map(lambda a, s: a.sharding == s, state, placed))
    assert int(state.step) == 3


def test_two_steps_follow_the_definition_of_clipped_adamw_and_ema():
    """Both gradients are clipped, the first ten times as much: Adam's first step would hide that,
    as it has any gradient's sign alone."""
    rate, b1, b2, weight_decay, clip_norm, decay = 0.1, 0.8, 0.95, 0.2, 2.0, 0.75
    options = Optimizer(rate, b1=b1, b2=b2, weight_decay=weight_decay, clip_norm=clip_norm)
    step, state, mesh = setup(ema=decay, tx=make_optimizer(options, 100))
    w = average = np.ones(2)
    mean, square = np.zeros(2), np.zeros(2)
    for number, (batch, away) in enumerate(zip(first_batches(2), (30, 4), strict=True)):
        batch["x"] += away
        key = jax.random.fold_in(jax.random.key(0), number)
        noise = [jax.random.normal(jax.random.fold_in(key, i), (2,)) for i in range(BATCH)]
        gradient = np.mean(2 * (w - batch["x"] - 0.1 * np.stack(noise)), axis=0)
        norm, distance = np.linalg.norm(gradient), np.abs(w - average).sum()
        clipped = gradient * clip_norm / norm
        mean = b1 * mean + (1 - b1) * clipped
        square = b2 * square + (1 - b2) * clipped**2
        root = np.sqrt(square / (1 - b2 ** (number + 1)))
        w = w - rate * (mean / (1 - b1 ** (number + 1)) / (root + 1e-8) + weight_decay * w)
        average = decay * average + (1 - decay) * w

        state, metrics = step(state, {"f": jnp.zeros(())}, shard_batch(batch, mesh))
        assert norm > 3 * clip_norm
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
        np.testing.assert_allclose(metrics["distance_to_ema"], distance, rtol=1e-5)
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
        np.testing.assert_allclose(state.ema["w"], average, rtol=1e-5)


def test_devices_and_parts_of_a_batch_change_nothing():
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    histories, rows = [], []

    def noted(*arguments):
        rows.append(len(arguments[4]))
        return quadratic(*arguments)

    for mesh, parts in ((one, 1), (make_mesh(), 1), (one, 4)):
        step, state, _ = setup(noted, mesh=mesh, accumulation=parts)
        for batch in first_batches(5):
            state, metrics = step(state, {"f": jnp.zeros(())}, shard_batch(batch, mesh))
            histories.append([metrics[name] for name in ("loss", "grad_norm", "distance_to_ema")])
    assert list(dict.fromkeys(rows)) == [16, 2, 4]
    alone, *others = np.reshape(histories, (3, 5, 3))
    for other in others:
        np.testing.assert_allclose(other, alone, rtol=1e-5, atol=1e-6)


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


def test_sums_by_bin():
    sums = sums_by_bin(jnp.array([1.0, 3.0, 5.0]), jnp.array([0, 0, 2]), 3, "b")
    assert sums == {"b0": (4, 2), "b1": (0, 0), "b2": (5, 1)}
