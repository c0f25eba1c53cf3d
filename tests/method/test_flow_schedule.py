"""The flow-matching schedule and its samplers against torch diffusers, and by hand."""

from functools import partial

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_flow_match_lcm
from helpers import jit, normal
from scipy import stats

from slam_jax.base.options import OptionError
from slam_jax.method.flow_matching import NOT_READ, FlowMatching
from slam_jax.method.lcm import Lcm
from slam_jax.method.method import RowKeys, gaussian
from slam_jax.method.sampler import sample_consistency, sample_ddim
from slam_jax.method.schedule import per_example
from slam_jax.method.solver import guided

SHAPE, STEPS = (3, 2, 4), (1, 2, 3, 4, 7, 28)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def made_up(numpy):
    return lambda x, t: numpy.tanh(1.3 * x - 0.4 + t / 700)


def ours(x, t, *_):
    return made_up(jnp)(x, per_example(t, x))


def stock_scheduler(schedule, sampler):
    """The one that an export asks for."""
    options = schedule.diffusers_scheduler(sampler, 50)
    return getattr(diffusers, options.pop("_class_name"))(**options)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_teacher_draws_as_the_stock_scheduler(shift):
    schedule = FlowMatching(shift)
    stock = stock_scheduler(schedule, "ddim")
    assert FlowMatching.from_config(dict(stock.config)) == schedule
    start = normal(0, 2, *SHAPE)
    for steps in STEPS:
        stock.set_timesteps(steps)
        times = schedule.teacher_timesteps(steps)
        np.testing.assert_allclose(times, stock.timesteps, rtol=1e-6)
        x = torch.from_numpy(start)
        for t in stock.timesteps:
            x = stock.step(made_up(torch)(x, t), t, x).prev_sample
        predict = guided(ours, schedule, None, None, 0.0)
        drawn = jit(partial(sample_ddim, predict, schedule))(jnp.asarray(start), timesteps=times)
        np.testing.assert_allclose(drawn, x, atol=2e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_student_draws_as_the_stock_scheduler_with_given_sigmas(shift, monkeypatch):
    """It shifts what it is given: u = 1, ... of the grid."""
    schedule = FlowMatching(shift)
    stock = stock_scheduler(schedule, "consistency")
    start, rows = normal(1, 2, *SHAPE), RowKeys(jax.random.key(5), jnp.arange(2) + 3)
    for steps in (1, 2, 4, 8):
        times = Lcm(num_ddim_timesteps=50).timesteps(steps, schedule)
        u = 1 - np.floor(np.linspace(0, 50, steps, endpoint=False)) / 50
        stock.set_timesteps(sigmas=u.tolist())
        np.testing.assert_allclose(times, stock.timesteps, rtol=1e-6)
        np.testing.assert_allclose(schedule.sigmas_for(times), u, atol=1e-6)
        keys = jax.random.split(rows.key, steps)
        noise = iter([gaussian(key, rows.index, SHAPE) for key in keys])
        monkeypatch.setattr(
            scheduling_flow_match_lcm,
            "randn_tensor",
            lambda *_, noise=noise, **__: torch.from_numpy(np.array(next(noise))),
        )
        x = torch.from_numpy(start)
        for t in stock.timesteps:
            x = stock.step(made_up(torch)(x, t), t, x).prev_sample
        draw = jit(partial(sample_consistency, ours, schedule, context=None, rows=rows))
        drawn = draw(jnp.asarray(start), timesteps=times)
        np.testing.assert_allclose(drawn, x, atol=2e-6)


def test_the_grid_by_hand():
    """kappa u / (1 + (kappa - 1) u), for kappa = 3: 3/6, 6/8 of u = 1/4, 1/2."""
    np.testing.assert_allclose(FlowMatching(3.0).grid(4), [500, 750, 900, 1000])
    np.testing.assert_allclose(FlowMatching().grid(3), np.array([1, 2, 3]) * 1000 / 3)
    with pytest.raises(OptionError, match="num_ddim_timesteps = 0, expected 1 or more"):
        FlowMatching().grid(0)
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"steps: {steps} must be between 1 and 1000"):
            FlowMatching().teacher_timesteps(steps)


def test_scales_times_and_outputs():
    schedule, t = FlowMatching(3.0), jnp.asarray([0.0, 250.0, 1000.0])
    alpha, sigma = schedule.at(t)
    assert alpha.tolist() == [1, 0.75, 0] and sigma.tolist() == [0, 0.25, 1]
    np.testing.assert_allclose(schedule.time_of(0.3 * alpha, 0.3 * sigma), t, atol=1e-9)
    np.testing.assert_allclose(schedule.norm(0.3 * alpha, 0.3 * sigma), 0.3)
    x0, eps = jnp.asarray(normal(2, 2, 3, *SHAPE))
    for scale in (1.0, 0.3):
        a, s = scale * alpha, scale * sigma
        x = per_example(a, x0) * x0 + per_example(s, x0) * eps
        for actual, expected in zip(
            schedule.to_x0_and_eps(eps - x0, x, a, s), (x0, eps), strict=True
        ):
            np.testing.assert_allclose(actual, expected, atol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_training_times_are_logit_normal_and_shifted(shift):
    schedule = FlowMatching(shift)
    times = jax.vmap(schedule.training_time)(jax.random.split(jax.random.key(0), 4000)) / 1000
    unshifted = times / (shift - (shift - 1) * times)
    logits = np.log(unshifted / (1 - unshifted))
    assert stats.kstest(logits, "norm").pvalue > 0.01


@pytest.mark.parametrize("name", NOT_READ)
def test_other_ways_to_place_times_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name}: True, expected none"):
        FlowMatching.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", name: True})


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"shift": 0}, "shift: 0, expected a number above 0"),
        ({"shift": None}, "shift: None, expected a number above 0"),
        ({"num_train_timesteps": 0}, "num_train_timesteps: 0, expected a whole number above 0"),
        ({"prediction_type": "epsilon"}, "prediction_type: 'epsilon', expected flow or none"),
    ],
)
def test_impossible_values_are_refused(config, line):
    with pytest.raises(ValueError, match=f"^{line}$"):
        FlowMatching.from_config(config)


def test_another_schedule_with_flow_in_its_name_is_not_taken_for_one():
    """PeRFlow's UNets predict noise on Stable Diffusion's own schedule."""
    assert not FlowMatching.reads({"_class_name": "PeRFlowScheduler"})
