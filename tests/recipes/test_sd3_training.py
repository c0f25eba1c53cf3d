"""Training of a student of Stable Diffusion 3: the same on any mesh and after any stop; and what is
no weight is not trained."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import interrupt_in_step
from small_sd3 import CONFIG, NETWORK, PIPELINE, Rows, Run

from slam_jax.config.options import StudentOptions
from slam_jax.data.batches import Batches
from slam_jax.families.pipeline import cast_weights, student_weights
from slam_jax.models import functional
from slam_jax.models.mmdit import PLACES
from slam_jax.parallel.sharding import shardings_of, to_host
from slam_jax.training.loop import Interrupted, TrainingRun, fit


@pytest.fixture(scope="module")
def one_device():
    """(a run of three steps on one device, its losses)."""
    run = Run(1, 1, 1)
    return run, run.losses(3)


# (devices, fsdp, accumulation)
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param((2, 2, 2), marks=pytest.mark.nightly),
        pytest.param((8, 4, 1), marks=pytest.mark.nightly),
        pytest.param((8, 1, 1), marks=pytest.mark.nightly),
    ],
)
def test_losses_are_the_same_on_any_mesh_and_in_any_parts(one_device, layout):
    run, (_, expected) = Run(*layout), one_device
    losses = run.losses(3)
    np.testing.assert_allclose(losses[:, 0], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(losses, expected, rtol=2e-4)
    where = shardings_of(run.state, run.mesh)
    assert jax.tree.all(jax.tree.map(lambda a, s: a.sharding == s, run.state, where))
    assert run.step._cache_size() == 1


@pytest.mark.slow  # compiles the step
def test_places_are_not_trained(one_device):
    """No weights, moments or average of them; with them a student is whole."""
    run, losses = one_device
    assert np.all(losses > 0) and int(run.state.step) == 3
    places = np.asarray(functional.flatten(run.teacher)[PLACES])
    size = places.shape
    assert not any(leaf.shape == size for leaf in jax.tree.leaves(run.state))
    trained = to_host(run.state.ema, run.mesh)
    whole = student_weights(PIPELINE, StudentOptions(), run.teacher, trained)
    np.testing.assert_array_equal(functional.flatten(whole)[PLACES], places)
    shapes = PIPELINE.abstract_params(NETWORK)
    assert functional.first_difference(shapes, whole) is None
    moved = [
        np.abs(a - b).max() > 0
        for a, b in zip(*map(jax.tree.leaves, (trained, run.params)), strict=True)
    ]
    assert np.mean(moved) > 0.95  # the keys' biases have no effect where there are norms


def test_places_keep_their_dtype():
    teacher = {"pos_embed": {"pos_embed": np.ones(3, np.float32), "b": np.ones(3, np.float32)}}
    found = jax.tree.map(lambda a: a.dtype.name, cast_weights(PIPELINE, teacher, "bfloat16"))
    assert found == {"pos_embed": {"pos_embed": "float32", "b": "bfloat16"}}


def fitted(run, folder, steps):
    training = dataclasses.replace(
        CONFIG.training, steps=steps, log_every=1, checkpoint_every=2, sample_every=0
    )
    data = Batches(Rows(), training.batch_size, seed=0)
    what = TrainingRun(run.step, run.init, data, run.mesh, training, folder, "student", {})
    return fit(what, run.params, run.frozen)


@pytest.mark.slow  # compiles the step
def test_a_stopped_run_goes_on_to_the_same_bits(one_device, tmp_path, monkeypatch):
    run, losses = one_device
    whole = jax.device_get(fitted(run, tmp_path / "whole", 4))
    interrupt_in_step(monkeypatch, 3)
    with pytest.raises(Interrupted, match="step 3 of 4"):
        fitted(run, tmp_path / "parts", 4)
    monkeypatch.undo()
    parts = jax.device_get(fitted(run, tmp_path / "parts", 4))
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    assert int(whole.step) == 4
