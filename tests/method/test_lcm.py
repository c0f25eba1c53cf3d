"""LCM and SLAM literal: each is SLAM with some options fixed, and draws what SLAM draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, normal, sd_schedule

from slam_jax.method.lcm import Lcm
from slam_jax.method.method import Examples, Networks
from slam_jax.method.schedule import per_example
from slam_jax.method.slam import Slam
from slam_jax.method.slam_literal import SlamLiteral

SHAPE, BATCH = (2, 2, 4), 16
SHARED = dict(num_ddim_timesteps=20, w=1.5, solver_substeps=2, huber_c=0.01)
PARAMS, EMA, TEACHER = {"a": 1.1, "b": -0.2}, {"a": 0.9, "b": 0.1}, {"a": 1.0, "b": 0.05}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def network(params):
    """A smooth made-up network, which adds what gamma is away from 1."""

    def apply(x, t, context, gamma=1.0):
        t = per_example(jnp.asarray(t, x.dtype), x)
        shift = per_example(context.mean(axis=(1, 2)), x)
        told = 1 - gamma * jnp.ones(len(x))
        return jnp.tanh(params["a"] * x + params["b"] + t / 900 + shift) + per_example(told, x)

    return apply


def computed(method, kind="epsilon", dtype=jnp.float64):
    """Losses, the gradient of their mean, the metrics, and what was drawn."""
    schedule, key = sd_schedule(kind), jax.random.key(2)
    context = jnp.asarray(normal(1, BATCH, 1, 2), dtype)
    latents = jnp.asarray(normal(0, BATCH, *SHAPE), dtype)
    batch = Examples(latents, context, 0 * context, jnp.arange(BATCH) + 3)
    networks = Networks(network, network, network(TEACHER), schedule)

    def mean_loss(params):
        losses, sums = method.loss(params, EMA, networks, batch, key)
        return losses.mean(), (losses, sums)

    gradient, (losses, sums) = jit(jax.grad(mean_loss, has_aux=True))(PARAMS)
    return losses, gradient, sums, method.drawn(key, batch.index, SHAPE, schedule)


def assert_same(actual, expected, rtol):
    for ours, theirs in zip(actual, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), ours, theirs)


@pytest.mark.parametrize(
    ("conditioning", "kind"),
    [("embedding", "epsilon"), ("snr", "v_prediction"), ("both", "sample")],
)
def test_lcm_is_slam_at_gamma_1(conditioning, kind, x64):
    """With the same draws. SNR-matched conditioning finds the time s once more by interpolation."""
    slam = Slam(**SHARED, gamma="one", conditioning=conditioning)
    losses, gradient, sums, drawn = computed(slam, kind)
    expected = losses, gradient, {k: v for k, v in sums.items() if k.startswith("loss_t")}
    assert np.all(drawn["gamma"] == 1)
    actual = computed(Lcm(**SHARED), kind)
    assert np.all(actual[0] > 0) and np.std(actual[0]) > 1e-3
    assert_same(
        actual, (*expected, {"t": drawn["t"]}), 1e-12 if conditioning == "embedding" else 1e-9
    )


def test_slam_literal_is_slam_with_the_authors_choices(x64):
    method, expected = SlamLiteral(**SHARED), computed(Slam(**SHARED))
    assert method.slam == Slam(**SHARED) and method.tells_gamma
    actual = computed(method)
    assert_same(actual, expected, 0)
    others = Slam(**SHARED, sigma="linear", conditioning="snr", gamma="half")
    assert np.abs(computed(others)[0] / actual[0] - 1).max() > 1e-3


@pytest.mark.parametrize("method", [Lcm, SlamLiteral])
def test_they_draw_as_slam_does(method):
    schedule, slam = sd_schedule(), Slam(num_ddim_timesteps=20)
    ours = method(num_ddim_timesteps=20)
    assert ours.timesteps(4, schedule, 0.8).tolist() == slam.timesteps(4, schedule, 0.8).tolist()
    assert method.sample is Slam.sample
    assert ours.diffusers_scheduler(schedule) == slam.diffusers_scheduler(schedule)
    assert ours.usual_steps == 4 and Lcm().tells_gamma is False


@pytest.mark.parametrize("method", [Lcm, SlamLiteral])
def test_their_options_are_those_that_they_do_not_fix(method):
    for name in ("gamma", "gammas_per_subpath", "sigma", "conditioning", "phases"):
        with pytest.raises(TypeError, match=name):
            method(**{name: 1})
