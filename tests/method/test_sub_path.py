"""Points of a sub-path and the consistency function there: closed forms and identities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PREDICTION_TYPES, assert_close, jit, normal, sd_schedule

from slam_jax.method.consistency import CONDITIONINGS, Point, consistency_function
from slam_jax.method.schedule import per_example
from slam_jax.method.slam import SIGMAS, interpolate
from slam_jax.method.solver import ddim_solve, guided


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def sub_path(schedule, index=(1, 20, 49), k=20):
    """(s, e, their scales) of some sub-paths as numpy arrays."""
    s = np.array(index) * k + k - 1
    e = np.maximum(s - k, 0)
    at = [np.asarray(schedule.alphas), np.asarray(schedule.sigmas)]
    return s, e, tuple(a[s] for a in at), tuple(a[e] for a in at)


def scales(at_s, at_e):
    """As `interpolate` takes them: r brings the end to the signal scale of the start."""
    return at_s, at_e, at_s[0] / at_e[0]


def columns(values):
    return np.asarray(values)[:, None, None, None]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_both_sigmas_meet_at_the_ends_of_the_sub_path(sigma, x64):
    _, _, at_s, at_e = sub_path(sd_schedule())
    x_s, x_e = normal(0, 2, 3, 2, 2, 4)
    r = at_s[0] / at_e[0]
    x_g, alpha_g, sigma_g = interpolate(x_s, x_e, scales(at_s, at_e), np.ones(3), sigma)
    assert_close(x_g, x_s, 1e-14)
    assert_close(alpha_g, at_s[0], 1e-14)
    assert_close(sigma_g, at_s[1], 1e-14)
    x_g, alpha_g, sigma_g = interpolate(x_s, x_e, scales(at_s, at_e), np.zeros(3), sigma)
    assert_close(x_g, columns(r) * x_e, 1e-14)
    assert_close(alpha_g, at_s[0], 1e-14)
    assert_close(sigma_g, r * at_e[1], 1e-14)


@pytest.mark.parametrize(("sigma", "middle"), [("linear", 0.625), ("paper", np.sqrt(0.311875))])
def test_sigma_at_the_middle_by_hand(sigma, middle, x64):
    """r = 0.6 / 0.8 = 0.75: (0.8 + 0.75 * 0.6) / 2, or (0.75 * 0.6)^2 + (1 - 0.75^2) / 4 rooted."""
    x_s, x_e = np.full((1, 1, 1, 1), 4.0), np.full((1, 1, 1, 1), 8.0)
    (a_s, s_s), (a_e, s_e), half = np.array([[0.6], [0.8]]), np.array([[0.8], [0.6]]), [0.5]
    known = scales((a_s, s_s), (a_e, s_e))
    x_g, alpha_g, sigma_g = interpolate(x_s, x_e, known, np.array(half), sigma)
    assert float(alpha_g[0]) == pytest.approx(0.6)
    assert float(x_g[0, 0, 0, 0]) == pytest.approx(0.5 * 4 + 0.5 * 0.75 * 8)
    assert float(sigma_g[0]) == pytest.approx(middle)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_one_point_data_gives_that_point(gamma, sigma, conditioning, x64):
    """Networks that know the noise find the point: everywhere with "linear", at the ends with
    "paper", which in between is not the noise scale of x_g."""
    schedule = sd_schedule()
    s, e, at_s, at_e = sub_path(schedule)
    point, eps = normal(1, 1, 2, 2, 4), normal(2, 3, 2, 2, 4)

    @jit
    def x0_and_f():
        x_s = columns(at_s[0]) * point + columns(at_s[1]) * eps
        context, gammas = jnp.zeros((3, 1, 1)), jnp.full(3, gamma)
        predict = guided(lambda x, t, c: eps, schedule, context, None, 0.0)
        x_e = ddim_solve(predict, schedule, x_s, s, e)
        x_g, alpha_g, sigma_g = interpolate(x_s, x_e, scales(at_s, at_e), gammas, sigma)
        where = Point(x_g, s, gammas, alpha_g, sigma_g)
        return x_g, consistency_function(lambda *_: eps, schedule, where, context, conditioning)

    x_g, f = (np.asarray(a) for a in x0_and_f())
    c_skip = columns(0.25 / ((10 * s) ** 2 + 0.25))
    x0 = (f - c_skip * x_g) / np.sqrt(1 - c_skip)  # c_out^2 = 1 - c_skip
    errors = np.abs(x0 - point).max(axis=(1, 2, 3))
    if sigma == "linear" or gamma in (0, 1):
        assert np.all(errors < 1e-9)
    else:
        assert np.all(errors > 1e-4)


def made_up(x, t, context, gamma=1.0):
    """A smooth network that depends on everything."""
    t = per_example(jnp.asarray(t, x.dtype), x)
    gamma = per_example(jnp.broadcast_to(gamma, x.shape[0]), x)
    return jnp.tanh(1.3 * x - 0.4 + t / 700 + context[:, :, None]) * (1 + 0.5 * gamma)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_at_gamma_one_all_conditionings_are_the_plain_consistency_function(prediction_type, x64):
    schedule = sd_schedule(prediction_type)
    s, e, at_s, at_e = sub_path(schedule, (0, 1, 20, 49))
    x, context, ones = jnp.asarray(normal(3, 4, 2, 2, 4)), jnp.full((4, 1, 1), 0.2), jnp.ones(4)
    output, alpha, sigma = np.asarray(made_up(x, s, context)), columns(at_s[0]), columns(at_s[1])
    x0 = {
        "epsilon": (x - sigma * output) / alpha,
        "v_prediction": alpha * x - sigma * output,
        "sample": output,
    }[prediction_type]
    scaled = columns(10.0 * s)
    expected = 0.25 / (scaled**2 + 0.25) * x + scaled / np.sqrt(scaled**2 + 0.25) * x0

    def consistency_functions():
        for conditioning, name in itertools.product(CONDITIONINGS, SIGMAS):
            _, alpha_g, sigma_g = interpolate(x, x, scales(at_s, at_e), ones, name)
            where = Point(x, s, ones, alpha_g, sigma_g)
            yield consistency_function(made_up, schedule, where, context, conditioning)

    for actual in jit(lambda: list(consistency_functions()))():
        assert_close(actual, expected, 1e-9)


def test_snr_conditioning_tells_the_network_the_true_noise_level(x64):
    """gamma = 1 is x_s at s; gamma = 0 is x_e at e; the gamma embedding says 1 unless "both"."""
    schedule = sd_schedule()
    s, e, at_s, at_e = sub_path(schedule, (0, 1, 20, 49))
    x_s, x_e = (jnp.asarray(a) for a in normal(4, 2, 4, 2, 2, 4))
    for conditioning, gamma in [("snr", 1.0), ("snr", 0.0), ("both", 1.0), ("both", 0.0)]:
        seen = {}

        def spy(x, t, context, told_gamma, seen=seen):
            seen.update(x=x, t=t, gamma=told_gamma)
            return x

        gammas = jnp.full(4, gamma)
        x_g, alpha_g, sigma_g = interpolate(x_s, x_e, scales(at_s, at_e), gammas, "paper")
        where = Point(x_g, jnp.asarray(s), gammas, alpha_g, sigma_g)
        consistency_function(spy, schedule, where, None, conditioning)
        assert_close(seen["x"], x_s if gamma else x_e, 1e-12)
        np.testing.assert_allclose(seen["t"], s if gamma else e, atol=1e-9)
        assert seen["gamma"].tolist() == [gamma if conditioning == "both" else 1.0] * 4


def test_unknown_sigma_and_conditioning_are_refused():
    x, ones = jnp.ones((1, 2, 2, 4)), jnp.ones(1)
    with pytest.raises(ValueError, match="'true'"):
        interpolate(x, x, scales((ones, ones), (ones, ones)), ones, "true")
    with pytest.raises(ValueError, match="'time'"):
        where = Point(x, jnp.asarray([19]), ones, ones, ones)
        consistency_function(made_up, sd_schedule(), where, x[..., 0], "time")
