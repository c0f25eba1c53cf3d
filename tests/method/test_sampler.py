"""Timesteps and samplers against torch diffusers' LCMScheduler and DDIMScheduler, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SD, as_output, gaussian_x0, jit, normal, sd_schedule

from slam_jax.method import sampler
from slam_jax.method.method import RowKeys, gaussian
from slam_jax.method.sampler import (
    consistency_timesteps,
    sample_consistency,
    sample_ddim,
)
from slam_jax.method.schedule import per_example
from slam_jax.method.solver import guided
from slam_jax.method.variance_preserving import (
    VariancePreserving,
    ddim_timesteps,
    distillation_grid,
)

SHAPE = (2, 2, 4)
GRID = distillation_grid(1000, 50)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def diffusers_scheduler(name, prediction_type="epsilon", **options):
    """A torch diffusers scheduler that computes in float64, and our schedule of the same values."""
    import diffusers  # slow to import, and only some tests need it

    scheduler = getattr(diffusers, name)(
        **SD, prediction_type=prediction_type, clip_sample=False, **options
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    schedule = VariancePreserving.from_alphas_cumprod(scheduler.alphas_cumprod, prediction_type)
    return scheduler, schedule


@pytest.mark.parametrize("grid", [50, 100, 25])
@pytest.mark.parametrize("strength", [1.0, 0.99, 0.8, 0.58, 0.5, 0.3, 0.04, 0.02, 0.01])
def test_timesteps_match_diffusers_for_every_number_of_steps(strength, grid):
    scheduler, _ = diffusers_scheduler("LCMScheduler")
    matched = refused = 0
    for steps in range(1, 61):
        try:
            scheduler.set_timesteps(steps, original_inference_steps=grid, strength=strength)
        except (ValueError, IndexError):
            with pytest.raises(ValueError, match="steps"):
                consistency_timesteps(steps, distillation_grid(1000, grid), strength)
            refused += 1
        else:
            actual = consistency_timesteps(steps, distillation_grid(1000, grid), strength)
            assert actual.tolist() == scheduler.timesteps.tolist()
            matched += 1
    assert matched == min(60, int(grid * strength))
    assert matched + refused == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(steps=0), "steps"),
        (dict(steps=51), "between 1 and 50"),
        (dict(steps=4, strength=0.0), "strength"),
        (dict(steps=4, strength=1.1), "strength"),
    ],
)
def test_impossible_timesteps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        consistency_timesteps(grid=GRID, **arguments)


def test_ddim_timesteps_match_diffusers():
    scheduler, _ = diffusers_scheduler("DDIMScheduler", timestep_spacing="trailing")
    for steps in (*range(1, 102), 333, 500, 999, 1000):
        scheduler.set_timesteps(steps)
        expected = scheduler.timesteps.tolist()[:steps]  # 1000 / 49 * 49 > 1000 in floating point
        assert ddim_timesteps(steps).tolist() == expected
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="steps"):
            ddim_timesteps(steps)


def made_up(numpy):
    """A network that depends on everything: jax.numpy for ours, torch for the reference."""
    return lambda x, t, context: numpy.tanh(1.1 * x + t / 800 + context) + 0.2 * x


def ours(x, t, context, gamma=None):
    output = made_up(jnp)(x, per_example(t, x), context[:, :, None])
    return output if gamma is None else output + 0.1 * per_example(1 - gamma, x)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 4])
def test_consistency_sampling_matches_diffusers(steps, prediction_type, x64, monkeypatch):
    """The same noise between the steps: ours is noted down and given to torch."""
    import torch

    scheduler, schedule = diffusers_scheduler("LCMScheduler", prediction_type)
    noises = []

    def noted(*args):
        noises.append(np.array(gaussian(*args), np.float64))
        return jnp.asarray(noises[-1])

    monkeypatch.setattr(sampler, "gaussian", noted)
    start = normal(0, 3, *SHAPE)
    with jax.disable_jit():  # lax.scan becomes a Python loop, so that the noise is a number
        actual = sample_consistency(
            ours,
            schedule,
            jnp.asarray(start),
            jnp.full((3, 1, 1), 0.4),
            consistency_timesteps(steps, GRID),
            RowKeys(jax.random.key(0), jnp.arange(3)),
        )

    assert len({noise.tobytes() for noise in noises}) == steps
    queue = iter(noises)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_lcm.randn_tensor",
        lambda *args, **kwargs: torch.from_numpy(next(queue)),
    )
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(start)
    for t in scheduler.timesteps:
        x = scheduler.step(made_up(torch)(x, int(t), 0.4), int(t), x).prev_sample
    np.testing.assert_allclose(actual, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_ddim_sampling_matches_diffusers(steps, prediction_type, x64):
    import torch

    scheduler, schedule = diffusers_scheduler(
        "DDIMScheduler", prediction_type, timestep_spacing="trailing", set_alpha_to_one=True
    )
    start, w = normal(1, 3, *SHAPE), 1.5
    context = jnp.full((3, 1, 1), 0.4)
    predict = guided(ours, schedule, context, -context, w)
    actual = jit(lambda x: sample_ddim(predict, schedule, x, ddim_timesteps(steps)))(start)
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(start)
    for t in scheduler.timesteps.tolist():
        cond, uncond = made_up(torch)(x, t, 0.4), made_up(torch)(x, t, -0.4)
        x = scheduler.step(cond + w * (cond - uncond), t, x).prev_sample
    np.testing.assert_allclose(actual, x, rtol=1e-9, atol=1e-9)


def test_ddim_sampling_without_null_context_is_not_guided():
    schedule, context = sd_schedule(), jnp.full((2, 1, 1), 0.4)
    x = jnp.asarray(normal(2, 2, *SHAPE), jnp.float32)

    def sample(null_context, w):
        predict = guided(ours, schedule, context, null_context, w)
        return sample_ddim(predict, schedule, x, ddim_timesteps(3))

    plain, zero, with_guidance = jit(
        lambda: (sample(None, 3.0), sample(-context, 0.0), sample(-context, 3.0))
    )()
    np.testing.assert_allclose(plain, zero, rtol=1e-5, atol=1e-5)
    assert np.abs(with_guidance - zero).max() > 0.1


MEAN, STD = 1.5, 0.3


def gaussian_student(schedule):
    """The best eps for data N(MEAN, STD^2)."""

    def student(x, t, context, gamma):
        alpha, sigma = (per_example(a, x) for a in schedule.at(t))
        return as_output(gaussian_x0(x, alpha, sigma, MEAN, STD), x, alpha, sigma, "epsilon")

    return student


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_mean_and_variance_for_gaussian_data(steps):
    """Every step is linear in x, so mean and variance of x ~ N(0, 1) go through it by hand."""
    schedule, count = sd_schedule(), 4096
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    timesteps = [999, 759, 499, 259][:: 4 // steps]
    mean, variance = 0.0, 1.0
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        alpha, c_skip = np.sqrt(abar[t]), 0.25 / ((10 * t) ** 2 + 0.25)
        c_out = np.sqrt(1 - c_skip)
        gain = alpha * STD**2 / (abar[t] * STD**2 + 1 - abar[t])
        mean = c_skip * mean + c_out * (MEAN + gain * (mean - alpha * MEAN))
        variance *= (c_skip + c_out * gain) ** 2
        if following is not None:
            mean *= np.sqrt(abar[following])
            variance = abar[following] * variance + 1 - abar[following]

    @jit
    def draw(key):
        x_key, step_key = jax.random.split(key)
        examples = jnp.arange(count)
        x = gaussian(x_key, examples, SHAPE)
        return sample_consistency(
            gaussian_student(schedule),
            schedule,
            x,
            jnp.zeros((count, 1, 1)),
            consistency_timesteps(steps, GRID),
            RowKeys(step_key, examples),
        )

    actual, size = np.asarray(draw(jax.random.key(0)), np.float64), count * np.prod(SHAPE)
    assert actual.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / size))
    assert actual.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / size))


def make_sampler(calls):
    """A jitted sampler, (key, examples, steps) -> latents, that notes each trace of the network."""
    schedule = sd_schedule()

    def student(x, t, context, gamma):
        calls.append(x.shape)
        return ours(x, t, context, gamma)

    def sample(key, examples, steps):
        x_key, step_key = jax.random.split(key)
        x, context = gaussian(x_key, examples, SHAPE), jnp.zeros((len(examples), 1, 1))
        timesteps, rows = consistency_timesteps(steps, GRID), RowKeys(step_key, examples)
        return sample_consistency(student, schedule, x, context, timesteps, rows)

    return jit(sample, static_argnums=2)


def test_one_copy_of_the_network_and_one_compile_per_steps_and_batch():
    calls = []
    sample, counts = make_sampler(calls), []
    for seed, batch, steps in [(0, 3, 2), (1, 3, 2), (0, 3, 8), (1, 3, 8), (0, 2, 8)]:
        sample(jax.random.key(seed), jnp.arange(batch), steps)
        counts.append(len(calls))
    assert counts == [1, 1, 2, 2, 3]


def test_a_picture_depends_on_its_key_and_index_only():
    sample, key = make_sampler([]), jax.random.key(0)
    first = np.asarray(sample(key, jnp.asarray([0, 1, 2]), 4))
    np.testing.assert_array_equal(first, sample(key, jnp.asarray([0, 1, 2]), 4))
    np.testing.assert_array_equal(first[[2, 0]], sample(key, jnp.asarray([2, 0, 5]), 4)[:2])
    another = np.asarray(sample(jax.random.key(1), jnp.asarray([0, 1, 2]), 4))
    pictures = [*first, *another]
    distances = [np.abs(a - b).max() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(distances) > 0.1


def test_gaussian_is_standard_normal():
    from scipy import stats

    noise = jit(lambda key: gaussian(key, jnp.arange(2000), SHAPE))(jax.random.key(3))
    assert stats.kstest(np.ravel(noise), "norm").pvalue > 0.01
