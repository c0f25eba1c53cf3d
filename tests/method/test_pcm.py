"""Phased consistency against the authors' formulas in torch and float64, and by hand.

The formulas are those of the authors' training script for Stable Diffusion 1.5 (its functions
`predicted_origin`, `DDIMSolver.ddim_step`, `DDIMSolver.ddim_style_multiphase_pred` and
`scalings_for_boundary_conditions_target`), written once more, one example after the other.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import PREDICTION_TYPES, SD, as_output, gaussian_x0, jit, normal, sd_schedule

from slam_jax.base.options import OptionError
from slam_jax.method.method import Examples, Networks, RowKeys
from slam_jax.method.pcm import Pcm, phase_edges
from slam_jax.method.sampler import sample_ddim
from slam_jax.method.schedule import per_example
from slam_jax.method.solver import guided
from slam_jax.method.sub_path import draw_starts
from slam_jax.method.variance_preserving import ddim_timesteps, distillation_grid

SHAPE, BATCH = (2, 2, 4), 40
PARAMS, EMA = {"a": 1.1, "b": -0.2}, {"a": 0.9, "b": 0.1}
TEACHER = {"a": 1.0, "b": 0.05}
KEY = 3


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def made_up(numpy):
    """A smooth network of two weights: jax.numpy for ours, torch for the reference."""
    return lambda p, x, t, context: numpy.tanh(p["a"] * x + p["b"] + t / 900 + context) + 0.1 * x


def denoiser(params):
    def apply(x, t, context, gamma=None):
        t = per_example(jnp.asarray(t, x.dtype), x)
        return made_up(jnp)(params, x, t, per_example(context.mean(axis=(1, 2)), x))

    return apply


def examples(dtype, latents=None):
    latents = normal(0, BATCH, *SHAPE) if latents is None else latents
    context = jnp.asarray(normal(1, BATCH, 1, 2), dtype)
    return Examples(jnp.asarray(latents, dtype), context, 0 * context, jnp.arange(BATCH) + 5)


def networks(schedule):
    return Networks(denoiser, denoiser, denoiser(TEACHER), schedule)


def authors_loss(params, ema, batch, starts, method, kind):
    """The mean loss, in torch."""
    abar = np.cumprod(1 - np.linspace(SD["beta_start"] ** 0.5, SD["beta_end"] ** 0.5, 1000) ** 2)
    abar = torch.from_numpy(abar)
    network, grid = made_up(torch), method.num_ddim_timesteps
    ratio = 1000 // grid
    timesteps = [i * ratio - 1 for i in range(1, grid + 1)]
    previous = [0, *timesteps[:-1]]
    first_of_phase = [int(np.floor(i * grid / method.phases)) for i in range(method.phases)]

    def origin_and_noise(output, t, x):
        alpha, sigma = abar[t].sqrt(), (1 - abar[t]).sqrt()
        if kind == "epsilon":
            return (x - sigma * output) / alpha, output
        return alpha * x - sigma * output, alpha * output + sigma * x

    def move(x0, noise, t):
        return abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * noise

    def leap(p, x, t, context, index):
        edge = previous[max(i for i in first_of_phase if i <= index)]
        return move(*origin_and_noise(network(p, x, t, context), t, x), edge)

    losses = []
    for row in range(BATCH):
        latents, context = (torch.from_numpy(np.array(a[row])) for a in batch[:2])
        context, index = context.mean(), int(starts.index[row])
        start, end = timesteps[index], max(timesteps[index] - ratio, 0)
        x = move(latents, torch.from_numpy(np.array(starts.eps[row])), start)
        answer = leap(params, x, start, context, index)
        with torch.no_grad():
            cond = origin_and_noise(network(TEACHER, x, start, context), start, x)
            uncond = origin_and_noise(network(TEACHER, x, start, 0 * context), start, x)
            w = float(np.broadcast_to(starts.w, BATCH)[row])
            x0, noise = (c + w * (c - u) for c, u in zip(cond, uncond, strict=True))
            x_prev = move(x0, noise, previous[index])
            target = leap(ema, x_prev, end, context, index)
            if index in first_of_phase:
                target = x_prev
        c = method.huber_c
        losses.append((((answer - target) ** 2 + c**2).sqrt() - c).mean())
    return torch.stack(losses)


# A number of phases that divides M, where the authors' edges and ours are the same.
@pytest.mark.parametrize(
    ("kind", "phases", "grid", "w_spread"),
    [
        ("epsilon", 1, 20, 0),
        ("epsilon", 4, 20, 1.5),
        ("v_prediction", 5, 50, 0),
        ("v_prediction", 10, 10, 2.5),
    ],
)
def test_loss_and_gradient_are_the_authors(kind, phases, grid, w_spread, x64):
    method = Pcm(phases=phases, num_ddim_timesteps=grid, w=2.5, w_spread=w_spread, huber_c=0.01)
    schedule, batch, key = sd_schedule(kind), examples(jnp.float64), jax.random.key(KEY)

    def mean_loss(params, ema):
        losses, _ = method.loss(params, ema, networks(schedule), batch, key)
        return losses.mean(), losses

    grad = jit(jax.grad(mean_loss, argnums=(0, 1), has_aux=True))
    (actual, for_target), losses = grad(PARAMS, EMA)
    starts, _ = draw_starts(key, batch.index, SHAPE, method)
    assert len(np.unique(starts.index)) >= min(grid, 15)
    params = {name: torch.tensor(value, dtype=torch.float64) for name, value in PARAMS.items()}
    for value in params.values():
        value.requires_grad_()
    expected = authors_loss(params, EMA, batch, starts, method, kind)
    expected.mean().backward()
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-8, atol=1e-14)
    for name, value in params.items():
        assert float(actual[name]) == pytest.approx(value.grad.item(), rel=1e-8)
    assert not any(map(float, for_target.values()))


@pytest.mark.parametrize("grid", [50, 40, 20, 8, 1000])
def test_phases_start_and_end_where_the_stock_scheduler_steps(grid):
    from diffusers import TCDScheduler

    scheduler = TCDScheduler(original_inference_steps=grid)
    points = np.arange(1, grid + 1) * (1000 // grid) - 1
    for phases in (1, 2, 3, 4, 5, 7, 8):
        scheduler.set_timesteps(phases)
        starts = scheduler.timesteps.tolist()
        phase = [max(i for i in range(phases) if starts[i] >= t) for t in points]
        edges = phase_edges(phases, points)
        assert edges.tolist() == [[*starts[1:], 0][i] for i in phase]
        assert np.all(edges < points) or grid == 1000
        if grid % phases == 0:  # the authors'
            first = [0, *points[:-1]]
            indices = np.floor(np.linspace(0, grid, phases, endpoint=False)).astype(int)
            last = [indices[indices <= j].max() for j in range(grid)]
            assert edges.tolist() == [first[j] for j in last]
    edges = phase_edges(4, distillation_grid(1000, 50))
    assert edges[[0, 12, 13, 24, 25, 37, 38, 49]].tolist() == [
        *(0, 0, 259, 259, 499, 499, 759, 759)
    ]


def test_on_the_edge_the_target_is_the_point_itself():
    """Whatever the target network says: where each sub-path is a phase, none of it matters."""
    schedule, key, batch = sd_schedule(), jax.random.key(0), examples(jnp.float32)

    def losses(phases):
        method = Pcm(phases=phases, num_ddim_timesteps=8)
        for ema in (EMA, {"a": -3.0, "b": 2.0}):
            yield method.loss(PARAMS, ema, networks(schedule), batch, key)[0]

    (one, other), (here, there) = jit(lambda: [list(losses(phases)) for phases in (8, 2)])()
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    assert np.mean(np.abs(there - here) > 0.01) > 0.5


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_data_of_one_point_cost_nothing(kind, x64):
    """There all leaps are exact: x0 and eps are the same along a trajectory. A student that leaps
    towards another point pays."""
    schedule, point = sd_schedule(kind), 0.7
    latents = np.full((BATCH, *SHAPE), point)

    def knows(params):
        def apply(x, t, context, gamma=None):
            alpha, sigma = (per_example(a, x) for a in schedule.at(t))
            return as_output(jnp.full_like(x, params), x, alpha, sigma, kind)

        return apply

    def losses(phases, student):
        method = Pcm(phases=phases, num_ddim_timesteps=20, distance="l2")
        nets = Networks(knows, knows, knows(point), schedule)
        batch, key = examples(jnp.float64, latents), jax.random.key(1)
        return method.loss(student, point, nets, batch, key)[0]

    exact, wrong = jit(lambda: ([losses(k, point) for k in (1, 4)], losses(4, point + 0.1)))()
    np.testing.assert_allclose(exact, 0, atol=1e-20)
    assert np.mean(wrong > 1e-4) > 0.7


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_with_one_phase_the_leap_is_to_time_0(kind, x64):
    """alpha_0 x0 + sigma_0 eps with x0 as in a consistency model, for data N(0.2, 0.4^2)."""
    method, schedule = Pcm(phases=1), sd_schedule(kind)
    x = normal(4, 3, *SHAPE)

    def student(x, t, context, gamma):
        alpha, sigma = (per_example(a, x) for a in schedule.at(t))
        return as_output(gaussian_x0(x, alpha, sigma, 0.2, 0.4), x, alpha, sigma, kind)

    timesteps = method.timesteps(1, schedule)
    assert timesteps.tolist() == [999]
    rows = RowKeys(jax.random.key(0), jnp.arange(3))
    drawn = jit(lambda x: method.sample(student, schedule, x, None, timesteps, rows))(x)
    alpha, sigma = float(schedule.alphas[999]), float(schedule.sigmas[999])
    x0 = gaussian_x0(x, alpha, sigma, 0.2, 0.4)
    eps = (x - alpha * x0) / sigma
    expected = float(schedule.alphas[0]) * x0 + float(schedule.sigmas[0]) * eps
    np.testing.assert_allclose(drawn, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_it_draws_as_the_stock_scheduler(steps, kind, x64):
    """diffusers' TCDScheduler at eta = 0, which is what the pipelines give it."""
    from diffusers import TCDScheduler

    method, schedule = Pcm(phases=4, num_ddim_timesteps=50), sd_schedule(kind)
    own = method.diffusers_scheduler(sd_schedule())
    assert own.pop("_class_name") == "TCDScheduler"
    scheduler = TCDScheduler(**SD, **own, prediction_type=kind)
    scheduler.alphas_cumprod = torch.from_numpy(np.asarray(schedule.alphas, np.float64) ** 2)
    scheduler.set_timesteps(steps)
    timesteps = method.timesteps(steps, schedule)
    assert scheduler.timesteps.tolist() == timesteps.tolist()
    start, context = normal(1, 3, *SHAPE), jnp.full((3, 1, 1), 0.4)
    rows = RowKeys(jax.random.key(0), jnp.arange(3))
    student = denoiser(PARAMS)
    drawn = jit(lambda x: method.sample(student, schedule, x, context, timesteps, rows))(start)
    x = torch.from_numpy(start)
    for t in scheduler.timesteps:
        output = made_up(torch)(PARAMS, x, int(t), 0.4)
        x = scheduler.step(output, t, x, eta=0.0).prev_sample
    np.testing.assert_allclose(drawn, x, rtol=1e-9, atol=1e-9)


def test_a_new_student_draws_as_its_teacher_by_ddim():
    """Its leaps are the teacher's steps, where phases end; only the last goes to time 0."""
    method, schedule = Pcm(phases=4, num_ddim_timesteps=40, w=0.0), sd_schedule()
    x, context = jnp.asarray(normal(2, 3, *SHAPE), jnp.float32), jnp.full((3, 1, 1), 0.4)
    teacher, rows = denoiser(TEACHER), RowKeys(jax.random.key(0), jnp.arange(3))
    assert method.timesteps(4, schedule).tolist() == ddim_timesteps(4).tolist()
    predict = guided(teacher, schedule, context, None, 0.0)
    ours, expected, clean = jit(
        lambda: (
            method.sample(teacher, schedule, x, context, ddim_timesteps(4), rows),
            sample_ddim(predict, schedule, x, np.array([*ddim_timesteps(4), 0])),
            sample_ddim(predict, schedule, x, ddim_timesteps(4)),
        )
    )()
    x0, _ = schedule.to_x0_and_eps(
        teacher(ours, jnp.zeros(3), context), ours, *schedule.at(jnp.zeros(3, int))
    )
    np.testing.assert_allclose(x0, expected, rtol=1e-4, atol=1e-4)  # five steps, the last from 0
    assert 1e-3 < np.abs(ours - clean).max() < 0.2


def test_what_it_tells_of_itself():
    method = Pcm(phases=8, num_ddim_timesteps=50)
    assert not method.tells_gamma and method.usual_steps == 8
    for phases in (0, 51):
        with pytest.raises(OptionError, match=f"phases = {phases}, expected .*at (least 1|most )"):
            Pcm(phases=phases)
    with pytest.raises(OptionError, match="num_ddim_timesteps = 30, expected a divisor of the"):
        Pcm(num_ddim_timesteps=30).check(sd_schedule())
    schedule, key, batch = sd_schedule(), jax.random.key(KEY), examples(jnp.float32)
    losses, sums = jit(lambda: method.loss(PARAMS, EMA, networks(schedule), batch, key))()
    drawn = method.drawn(key, batch.index, SHAPE, schedule)
    assert drawn.keys() == {"t"}
    quarter = (np.asarray(drawn["t"]) + 1) // 20 - 1
    quarter = quarter * 4 // 50
    for i in range(4):
        total, count = sums[f"loss_t{i}"]
        assert count == np.sum(quarter == i) > 0
        assert float(total) == pytest.approx(float(losses[quarter == i].sum()), rel=1e-4)
