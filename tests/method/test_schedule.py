"""Noise schedules against torch diffusers; conversions, scalings and grids against closed forms."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PREDICTION_TYPES, SD, as_output, normal, sd_schedule

from slam_jax.method import schedule as sch
from slam_jax.method import variance_preserving as vp
from slam_jax.method.flow_matching import FlowMatching
from slam_jax.method.registry import SCHEDULES, schedule_from_config
from slam_jax.method.variance_preserving import VariancePreserving

CONFIGS = {
    "defaults": {},
    "linear": dict(beta_schedule="linear", beta_start=2e-4, beta_end=0.015),
    "scaled_linear": SD,
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
    "cosine_100": dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=100),
    "trained": dict(trained_betas=[0.001 + 0.02 * (i / 500) ** 2 for i in range(500)]),
}
T = np.arange(1000)


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_schedule_matches_diffusers(scheduler, zero_snr, name):
    import diffusers

    config = {**CONFIGS[name], **({"rescale_betas_zero_snr": True} if zero_snr else {})}
    reference = getattr(diffusers, scheduler)(**config)
    expected = reference.alphas_cumprod.double().numpy()  # multiplied up in float32
    if zero_snr:
        assert expected[-1] == 0
        expected[-1] = min(2.0**-24, expected[-2] / 2)
    for actual in (
        VariancePreserving.from_config(config),
        VariancePreserving.from_config(reference.config),
    ):
        assert actual.num_train_timesteps == len(expected)
        np.testing.assert_allclose(actual.alphas, np.sqrt(expected), rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(actual.alphas**2, expected, rtol=0, atol=2e-6)
        np.testing.assert_allclose(actual.sigmas**2, 1 - expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_zero_terminal_snr_falls_to_an_end_that_float32_can_divide_by(name):
    schedule = VariancePreserving.from_config({**CONFIGS[name], "rescale_betas_zero_snr": True})
    assert np.all(np.diff(schedule.alphas) < 0)
    assert 0 < schedule.alphas[-1] <= 2.0**-12
    assert schedule.sigmas[-1] == pytest.approx(1, abs=1e-7)
    np.testing.assert_allclose(
        schedule.time_of(schedule.alphas, schedule.sigmas),
        np.arange(schedule.num_train_timesteps),
        atol=1e-2,
    )


def test_from_alphas_cumprod_leaves_its_argument_alone():
    abar = np.array([0.9, 0.5, 0.0])
    VariancePreserving.from_alphas_cumprod(abar)
    assert abar.tolist() == [0.9, 0.5, 0.0]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VariancePreserving.from_config({"beta_schedule": "sigmoid"}), "beta_schedule"),
        (lambda: VariancePreserving.from_config({"prediction_type": "eps"}), "prediction_type"),
        (lambda: VariancePreserving.from_alphas_cumprod([1.0, 0.5]), "values that fall"),
        (lambda: VariancePreserving.from_alphas_cumprod([0.5, 0.9]), "values that fall"),
        (lambda: VariancePreserving.from_alphas_cumprod([1.1, 0.9]), "values that fall"),
        (lambda: VariancePreserving.from_alphas_cumprod([0.9, -0.1]), "values that fall"),
        (lambda: VariancePreserving.from_alphas_cumprod([0.9, np.nan]), "values that fall"),
        (lambda: VariancePreserving.from_alphas_cumprod([[0.9, 0.1]]), "values that fall"),
    ],
)
def test_impossible_schedules_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-9), (False, 1e-2)])
def test_time_of_inverts_the_noise_to_signal_ratio(x64, tolerance):
    with jax.enable_x64(x64):
        schedule = sd_schedule()
        t = schedule.time_of(schedule.alphas, schedule.sigmas)
        assert t.dtype == (jnp.float64 if x64 else jnp.float32)
        np.testing.assert_allclose(t, T, atol=tolerance)


def test_time_of_rises_between_timesteps_and_is_log_linear_there():
    with jax.enable_x64(True):
        schedule = sd_schedule()
        ratio = np.asarray(schedule.sigmas / schedule.alphas)
        halfway = np.sqrt(ratio[1:] * ratio[:-1])
        np.testing.assert_allclose(schedule.time_of(1.0, jnp.asarray(halfway)), T[:-1] + 0.5)
        everywhere = jnp.geomspace(ratio[0], ratio[-1], 20_000)
        assert np.all(np.diff(schedule.time_of(1.0, everywhere)) > 0)


def at_by_hand(config, t):
    """(alpha, sigma) at real-valued times: log(sigma / alpha) is linear between timesteps."""
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)
    logs, before = np.log((1 - abar) / abar) / 2, np.floor(t).astype(int)
    after, share = np.minimum(before + 1, 999), t - before
    ratio = np.exp((1 - share) * logs[before] + share * logs[after])
    angle = np.arctan(ratio)
    return np.cos(angle), np.sin(angle)


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 1e-5)])
def test_scales_at_real_valued_times(x64, tolerance):
    t = np.concatenate([np.random.default_rng(0).uniform(0, 999, 5000), [0.0, 0.5, 998.5, 999.0]])
    with jax.enable_x64(x64):
        schedule = sd_schedule()
        alpha, sigma = (np.asarray(a) for a in schedule.at(jnp.asarray(t)))
        assert alpha.dtype == sigma.dtype == (np.float64 if x64 else np.float32)
        again = schedule.time_of(*schedule.at(jnp.asarray(t)))
        whole = schedule.at(jnp.arange(1000.0)), schedule.at(jnp.arange(1000))
    t = t if x64 else np.float32(t).astype(np.float64)
    for actual, expected in zip((alpha, sigma), at_by_hand(SD, t), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=tolerance * 10)
    np.testing.assert_allclose(np.float64(alpha) ** 2 + np.float64(sigma) ** 2, 1, atol=tolerance)
    np.testing.assert_allclose(again, t, rtol=0, atol=1e-9 if x64 else 1e-2)
    for actual, expected in zip(*whole, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=tolerance)


@pytest.mark.parametrize("t", [[0, 19, 500, 999], [0.25, 19.5, 500.75, 998.5]])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_training_targets_are_their_definitions_and_are_read_back(prediction_type, zero_snr, t):
    with jax.enable_x64(True):
        schedule, t = sd_schedule(prediction_type, zero_snr), jnp.asarray(t)
        alpha, sigma = schedule.at(t)
        columns = np.asarray(alpha)[:, None, None, None], np.asarray(sigma)[:, None, None, None]
        x0, eps = normal(2, 2, 4, 3, 2, 4)
        target = schedule.training_target(jnp.asarray(x0), jnp.asarray(eps), t)
        definitions = {
            "epsilon": eps,
            "v_prediction": columns[0] * eps - columns[1] * x0,
            "sample": x0,
        }
        np.testing.assert_allclose(target, definitions[prediction_type], rtol=1e-12)
        x = sch.add_noise(jnp.asarray(x0), jnp.asarray(eps), alpha, sigma)
        read = schedule.to_x0_and_eps(target, x, alpha, sigma)
        np.testing.assert_allclose(read[0], x0, atol=1e-9)
        np.testing.assert_allclose(read[1], eps, atol=1e-9)


def test_training_times_are_uniform():
    from scipy import stats

    schedule = VariancePreserving.from_alphas_cumprod([0.9, 0.6, 0.3, 0.1])
    times = jax.vmap(schedule.training_time)(jax.random.split(jax.random.key(0), 4000))
    assert stats.chisquare(np.bincount(times, minlength=4)).pvalue > 0.01


def test_the_kind_of_schedule_is_read_from_the_config(monkeypatch):
    assert isinstance(schedule_from_config(SD), VariancePreserving)
    assert isinstance(schedule_from_config({"_class_name": "PNDMScheduler"}), VariancePreserving)
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    assert schedule_from_config(flow) == FlowMatching(3.0)

    class Other(VariancePreserving):
        reads = classmethod(lambda cls, config: "Flow" in config["_class_name"])
        from_config = classmethod(lambda cls, config: cls.from_alphas_cumprod([0.9, 0.1]))

    monkeypatch.setitem(SCHEDULES, "other", Other)
    assert type(schedule_from_config(flow)) is Other
    monkeypatch.delitem(SCHEDULES, "other")
    monkeypatch.delitem(SCHEDULES, "flow_matching")
    with pytest.raises(ValueError, match="FlowMatch.*another kind than variance_preserving"):
        schedule_from_config(flow)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_outputs_round_trip_to_float32_precision_at_every_timestep(prediction_type, zero_snr):
    schedule = sd_schedule(prediction_type, zero_snr)
    alpha, sigma = (np.float64(a)[:, None, None, None] for a in schedule.at(T))
    x0, eps = normal(0, 2, 1000, 3, 2, 4)
    x = alpha * x0 + sigma * eps
    output = as_output(x0, x, alpha, sigma, prediction_type)

    actual = schedule.to_x0_and_eps(jnp.float32(output), jnp.float32(x), *schedule.at(T))

    # Rounding of x is divided by alpha to get x0 from eps, and by sigma to get eps from x0.
    rounding = 5 * 2.0**-23 * max(np.abs(x0).max(), np.abs(eps).max())
    x0_bound = rounding / alpha if prediction_type == "epsilon" else rounding
    eps_bound = rounding / sigma if prediction_type == "sample" else rounding
    assert np.all(np.abs(actual[0] - x0) < x0_bound)
    assert np.all(np.abs(actual[1] - eps) < eps_bound)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_outputs_mean_the_same_where_the_scales_are_not_on_the_unit_circle(prediction_type):
    """Inside a sub-path alpha^2 + sigma^2 is not 1."""
    alpha, sigma = jnp.asarray([0.6, 0.3, 1.5]), jnp.asarray([0.5, 0.9, 0.2])
    columns = np.asarray(alpha)[:, None, None, None], np.asarray(sigma)[:, None, None, None]
    x0, eps = normal(1, 2, 3, 2, 2, 4)
    x = columns[0] * x0 + columns[1] * eps
    output = as_output(x0, x, *columns, prediction_type)
    actual = vp.to_x0_and_eps(jnp.float32(output), jnp.float32(x), alpha, sigma, prediction_type)
    np.testing.assert_allclose(actual[0], x0, atol=1e-5)
    np.testing.assert_allclose(actual[1], eps, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        *({"num_train_timesteps": count} for count in (10**12, 1, 0, -5, 2.5, "1000")),
        *({"beta_start": beta} for beta in (math.nan, math.inf, 0.0, 1, -0.1, "x")),
        {"beta_end": math.nan},
    ],
)
def test_a_schedule_that_cannot_be_is_refused(values):
    ((name, value),) = values.items()
    with pytest.raises(ValueError, match=f"^{name}: {re.escape(repr(value))}, expected "):
        vp.VariancePreserving.from_config(values)


def test_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="prediction_type: 'velocity'"):
        vp.to_x0_and_eps(jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.ones(1), jnp.ones(1), "velocity")


def test_add_noise_scales_each_example():
    actual = sch.add_noise(
        jnp.asarray([[1.0, 2.0], [3.0, 4.0]]),
        jnp.asarray([[10.0, 20.0], [30.0, 40.0]]),
        jnp.asarray([0.5, 1.0]),
        jnp.asarray([0.1, 0.0]),
    )
    np.testing.assert_allclose(actual, [[1.5, 3.0], [3.0, 4.0]])


def test_boundary_scalings_match_diffusers():
    import diffusers

    scheduler = diffusers.LCMScheduler()
    expected = np.array(
        [scheduler.get_scalings_for_boundary_condition_discrete(int(t)) for t in T]
    ).T
    np.testing.assert_allclose(vp.boundary_scalings(jnp.asarray(T)), expected, rtol=1e-6)
    with jax.enable_x64(True):
        actual = vp.boundary_scalings(jnp.asarray(T), jnp.float64)
        np.testing.assert_allclose(actual, expected, rtol=1e-13)
    assert tuple(expected[:, 0]) == (1, 0)  # the identity at t = 0


def test_distillation_grid():
    assert vp.distillation_grid(1000, 50).tolist() == list(range(19, 1000, 20))
    assert vp.distillation_grid(12, 4).tolist() == [2, 5, 8, 11]
    assert vp.distillation_grid(5, 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, -5, 3, 1001, 2000])
def test_distillation_grid_that_does_not_divide_is_refused(count):
    with pytest.raises(ValueError, match="num_ddim_timesteps"):
        vp.distillation_grid(1000, count)


def test_gamma_embedding_by_hand():
    """dim 4: the frequencies are 1 and 1/10000, and u = 10 - 10 gamma."""
    actual = sch.gamma_embedding(jnp.asarray([1.0, 0.9995]), 4)
    u = 0.005
    expected = [[0, 0, 1, 1], [np.sin(1000 * u), np.sin(u / 10), np.cos(1000 * u), np.cos(u / 10)]]
    np.testing.assert_allclose(actual, expected, atol=2e-3)  # float32 cannot hold 0.9995 better


@pytest.mark.parametrize("dim", [0, 2, 255])
def test_gamma_embedding_of_impossible_width_is_refused(dim):
    with pytest.raises(ValueError, match="time_cond_proj_dim"):
        sch.gamma_embedding(jnp.ones(1), dim)
