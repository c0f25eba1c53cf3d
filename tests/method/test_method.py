"""SLAM as a method: what training, drawing and export ask it for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, normal, sd_schedule

from slam_jax.base.options import OptionError
from slam_jax.method.consistency import CONDITIONINGS
from slam_jax.method.method import Examples, Networks, RowKeys
from slam_jax.method.registry import METHODS
from slam_jax.method.sampler import consistency_timesteps, sample_consistency
from slam_jax.method.slam import BINS, Slam, draw, slam_loss
from slam_jax.method.variance_preserving import distillation_grid

SHAPE, BATCH = (2, 2, 4), 64
METHOD = Slam(num_ddim_timesteps=20, gamma="half", gammas_per_subpath=3, w=1.0)


def student(params):
    return lambda x, t, context, gamma: jnp.tanh(params["a"] * x) * (2 - gamma[:, None, None, None])


def teacher(x, t, context):
    return jnp.tanh(x) + context[:, None, None, :]


def examples():
    context = jnp.asarray(normal(1, BATCH, 4), jnp.float32)
    latents = jnp.asarray(normal(0, BATCH, *SHAPE), jnp.float32)
    return Examples(latents, context, 0 * context, jnp.arange(BATCH) + 7)


def test_the_loss_is_the_mean_over_gammas_and_its_metrics_are_sums_over_bins():
    """A quarter of the schedule's times, or of [0, 1], to a bin; gamma = 1 is in the last one."""
    networks = Networks(student, student, teacher, sd_schedule())
    params, ema, key = {"a": 1.0}, {"a": 0.8}, jax.random.key(3)

    @jit
    def compute():
        batch = examples()
        draws = draw(key, batch.index, SHAPE, METHOD)
        bound = student(params), student(ema), teacher
        expected = slam_loss(bound, networks.schedule, batch, draws, METHOD)
        return METHOD.loss(params, ema, networks, batch, key), expected, draws

    (losses, sums), expected, draws = compute()
    assert expected.shape == (BATCH, 3)
    np.testing.assert_allclose(losses, expected.mean(axis=1), rtol=1e-5)
    times = np.asarray(draws.starts.index) * 4 // 20
    gammas = np.minimum(np.asarray(draws.gamma) * 4, 3).astype(int)
    assert np.any(np.asarray(draws.gamma) == 1)
    assert len(sums) == 2 * BINS
    for i in range(BINS):
        total, count = sums[f"loss_t{i}"]
        assert float(count) == np.sum(times == i) > 0
        assert float(total) == pytest.approx(float(losses[times == i].sum()), rel=1e-4)
        total, count = sums[f"loss_gamma{i}"]
        assert float(count) == np.sum(gammas == i) > 0
        assert float(total) == pytest.approx(float(expected[gammas == i].sum()), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_student_and_target_are_made_of_their_own_weights(method):
    """The target may compute in another precision, and the student some things twice."""
    made = []

    def network(name):
        return lambda weights: made.append((name, weights)) or (lambda x, *_: x)

    networks = Networks(network("student"), network("target"), teacher, sd_schedule())
    batch, key = examples(), jax.random.key(0)
    jax.eval_shape(lambda: METHODS[method]().loss("trained", "averaged", networks, batch, key))
    assert sorted(made) == [("student", "trained"), ("target", "averaged")]


def test_what_is_said_to_be_drawn_is_what_the_student_is_shown():
    seen, key, schedule = {}, jax.random.key(5), sd_schedule()

    def spy(params):
        def apply(x, t, context, gamma):
            seen[len(x)] = t, gamma
            return x

        return apply

    @jit
    def compute():
        batch = examples()
        METHOD.loss({}, {}, Networks(spy, spy, teacher, schedule), batch, key)
        return seen[3 * BATCH], METHOD.drawn(key, batch.index, SHAPE, schedule)

    (t, gamma), drawn = compute()
    np.testing.assert_array_equal(np.repeat(drawn["t"], 3), t)
    np.testing.assert_array_equal(np.ravel(drawn["gamma"]), gamma)


def test_a_grid_that_does_not_divide_the_schedule_is_refused():
    METHOD.check(sd_schedule())
    with pytest.raises(
        OptionError, match="num_ddim_timesteps = 30, expected a divisor of the 1000"
    ):
        Slam(num_ddim_timesteps=30).check(sd_schedule())


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_only_snr_tells_the_network_nothing_of_gamma(conditioning):
    assert Slam(conditioning=conditioning).tells_gamma == (conditioning != "snr")


def test_it_draws_by_consistency_sampling_on_its_own_grid():
    schedule, x = sd_schedule(), jnp.asarray(normal(2, 3, *SHAPE), jnp.float32)
    timesteps = METHOD.timesteps(4, schedule, strength=0.8)
    assert timesteps.tolist() == consistency_timesteps(4, distillation_grid(1000, 20), 0.8).tolist()
    arguments = student({"a": 1.0}), schedule, x, None, timesteps
    rows = RowKeys(jax.random.key(1), jnp.arange(3))
    actual, expected = jit(
        lambda: (METHOD.sample(*arguments, rows), sample_consistency(*arguments, rows))
    )()
    np.testing.assert_array_equal(actual, expected)
    with pytest.raises(ValueError, match="steps: 21 must be between 1 and 20"):
        METHOD.timesteps(21, schedule)


def test_the_registry_names_methods_as_they_name_themselves():
    names = ["slam", "slam_literal", "lcm", "pcm"]
    assert [method().name for method in METHODS.values()] == list(METHODS) == names
