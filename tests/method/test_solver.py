"""Guidance and DDIM: against torch diffusers, by hand, and by order of convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PREDICTION_TYPES, SD, as_output, gaussian_x0, jit, normal, sd_schedule

from slam_jax.method.schedule import per_example
from slam_jax.method.solver import ddim_solve, guided
from slam_jax.method.variance_preserving import VariancePreserving

COND, UNCOND = 0.4, -0.3


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def network(numpy):
    """A made-up network that depends on everything: jax.numpy for ours, else the reference."""
    return lambda x, t, context: numpy.tanh(x * (1 + t / 1000) + context) + 0.3 * x


def ours(x, t, context):
    return network(jnp)(x, per_example(t, x), context[:, :, None])


def contexts(batch):
    return jnp.full((batch, 1, 1), COND), jnp.full((batch, 1, 1), UNCOND)


def solve(schedule, x, s, e, w=2.0, substeps=1, denoise=ours, null=True):
    """`ddim_solve` with one s and e for all rows, or one per row; compiled."""
    s, e = (jnp.broadcast_to(jnp.asarray(t), len(x)) for t in (s, e))
    context, null_context = contexts(len(x))
    null_context = null_context if null else None

    @jit
    def run(x, s, e):
        predict = guided(denoise, schedule, context, null_context, w)
        return ddim_solve(predict, schedule, x, s, e, substeps)

    return np.asarray(run(x, s, e))


@pytest.fixture(params=PREDICTION_TYPES)
def torch_ddim(request):
    """torch diffusers' DDIM, computing in float64, and our schedule with the same values."""
    import diffusers

    scheduler = diffusers.DDIMScheduler(
        **SD,
        prediction_type=request.param,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(50)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler, VariancePreserving.from_alphas_cumprod(
        scheduler.alphas_cumprod, request.param
    )


def torch_step(scheduler, x, t, w):
    import torch

    reference = network(torch)
    cond, uncond = reference(x, t, COND), reference(x, t, UNCOND)
    return scheduler.step(cond + w * (cond - uncond), t, x).prev_sample


@pytest.mark.parametrize("s", [39, 499, 999])
def test_one_step_matches_diffusers(torch_ddim, s):
    import torch

    scheduler, schedule = torch_ddim
    x = normal(0, 3, 2, 2, 4)
    expected = torch_step(scheduler, torch.from_numpy(x), s, 2.0)
    np.testing.assert_allclose(solve(schedule, x, s, s - 20), expected, rtol=1e-10, atol=1e-10)


def test_trajectory_of_substeps_matches_diffusers(torch_ddim):
    import torch

    scheduler, schedule = torch_ddim
    start = normal(1, 3, 2, 2, 4)
    x = torch.from_numpy(start)
    for t in scheduler.timesteps[:-1]:  # the last one goes to alpha = 1, which is no timestep
        x = torch_step(scheduler, x, int(t), 0.5)
    actual = solve(schedule, start, 999, 19, w=0.5, substeps=49)
    np.testing.assert_allclose(actual, x, rtol=1e-9, atol=1e-9)


def test_guidance_is_extrapolation_from_uncond_by_w_plus_one():
    """w counts from the conditional prediction: the usual guidance scale is w + 1."""
    schedule, t, scale = sd_schedule(), np.array([19, 999]), 7.5
    x = normal(2, 2, 2, 2, 4)
    x0, eps = jit(guided(ours, schedule, *contexts(2), w=scale - 1))(x, t)
    times = t[:, None, None, None]
    cond, uncond = network(np)(x, times, COND), network(np)(x, times, UNCOND)
    np.testing.assert_allclose(eps, uncond + scale * (cond - uncond), rtol=1e-10)
    alpha, sigma = (np.asarray(a)[times] for a in (schedule.alphas, schedule.sigmas))
    np.testing.assert_allclose(alpha * x0 + sigma * eps, x, rtol=1e-10)


def test_without_null_context_there_is_no_guidance_and_half_the_work():
    rows = []

    def counting(x, t, context):
        rows.append(len(x))
        return ours(x, t, context)

    x = normal(3, 5, 2, 2, 4)
    plain = solve(sd_schedule(), x, 519, 499, w=8.0, denoise=counting, null=False)
    zero = solve(sd_schedule(), x, 519, 499, w=0.0, denoise=counting)
    assert rows == [5, 10]
    np.testing.assert_allclose(plain, zero, rtol=1e-12)
    assert np.abs(zero - solve(sd_schedule(), x, 519, 499, w=8.0)).max() > 1e-2


def test_cond_and_uncond_of_an_example_are_neighbours():
    seen = {}

    def spy(x, t, context):
        seen.update(x=x[:, 0, 0, 0], t=t, context=context[:, 0, 0])
        return x

    x = jnp.asarray([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1)
    context = jnp.asarray([10.0, 20.0, 30.0]).reshape(3, 1, 1)
    guided(spy, sd_schedule(), context, -context, 1.0)(x, jnp.asarray([7, 8, 9]))
    assert seen["x"].tolist() == [1, 1, 2, 2, 3, 3]
    assert seen["t"].tolist() == [7, 7, 8, 8, 9, 9]
    assert seen["context"].tolist() == [10, -10, 20, -20, 30, -30]


@pytest.mark.parametrize(
    ("s", "e", "substeps", "expected"),
    [
        (999, 979, 1, [999]),
        (999, 979, 4, [999, 994, 989, 984]),
        (999, 979, 3, [999, 993, 986]),
        (19, 0, 2, [19, 10]),
    ],
)
def test_substeps_evaluate_the_teacher_at_equally_spaced_times(s, e, substeps, expected):
    """A point and its exact eps: DDIM stays on x_t = alpha_t x_0 + sigma_t eps at every time."""
    schedule, times = sd_schedule(), []
    alphas, sigmas = np.asarray(schedule.alphas), np.asarray(schedule.sigmas)
    x0, eps = normal(4, 1, 2, 2, 4), normal(5, 1, 2, 2, 4)

    def at(t):
        return alphas[t] * x0 + sigmas[t] * eps

    def exact(x, t, context):
        times.append(int(t[0]))
        np.testing.assert_allclose(x, at(times[-1]), rtol=1e-10)
        return jnp.asarray(eps)

    with jax.disable_jit():  # lax.scan becomes a Python loop
        x_e = solve(schedule, at(s), s, e, substeps=substeps, denoise=exact, null=False)
    assert times == expected
    np.testing.assert_allclose(x_e, at(e), rtol=1e-10)


def test_every_example_has_its_own_times():
    schedule, s, e = sd_schedule(), np.array([19, 519, 999]), np.array([0, 499, 979])
    x = normal(6, 3, 2, 2, 4)
    together = solve(schedule, x, s, e, substeps=3)
    for i in range(3):
        alone = solve(schedule, x[i : i + 1], s[i], e[i], substeps=3)
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-10)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_error_falls_with_the_first_order_of_the_step_size(prediction_type):
    """Gaussian data N(m, d^2): the PF-ODE keeps (x - alpha m) / sqrt(alpha^2 d^2 + sigma^2)."""
    schedule, mean, std = sd_schedule(prediction_type), 0.7, 0.5
    alphas, sigmas = np.asarray(schedule.alphas), np.asarray(schedule.sigmas)
    s, e, substeps = 975, 15, np.array([15, 30, 60, 120])

    def denoise(x, t, context):
        alpha, sigma = (per_example(a, x) for a in schedule.at(t))
        return as_output(gaussian_x0(x, alpha, sigma, mean, std), x, alpha, sigma, prediction_type)

    def spread(t):
        return np.sqrt(alphas[t] ** 2 * std**2 + sigmas[t] ** 2)

    x_s = normal(7, 1, 2, 2, 4)
    expected = alphas[e] * mean + (x_s - alphas[s] * mean) * spread(e) / spread(s)
    errors = [
        np.abs(solve(schedule, x_s, s, e, substeps=int(p), denoise=denoise, null=False) - expected)
        for p in substeps
    ]
    errors = np.max(errors, axis=(1, 2, 3, 4))
    order = -np.polyfit(np.log(substeps), np.log(errors), 1)[0]
    assert order == pytest.approx(1, abs=0.1)
    assert errors[-1] < 0.02
