"""SLAM, LCM and PCM on flow-matching teachers: closed forms, and torch in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import jit, normal

from slam_jax.base.options import OptionError
from slam_jax.method.consistency import Point, consistency_function
from slam_jax.method.flow_matching import FlowMatching
from slam_jax.method.lcm import Lcm
from slam_jax.method.method import Examples, Networks
from slam_jax.method.pcm import Pcm
from slam_jax.method.schedule import per_example
from slam_jax.method.slam import Draws, Slam, draw, interpolate, slam_loss
from slam_jax.method.slam_literal import SlamLiteral
from slam_jax.method.solver import ddim_solve, guided
from slam_jax.method.sub_path import Starts, draw_starts

SHAPE, BATCH = (2, 2, 4), 12
FLOW = dict(sigma="linear", conditioning="snr")
PARAMS, EMA, TEACHER = {"a": 1.1, "b": -0.2}, {"a": 0.9, "b": 0.1}, {"a": 1.0, "b": 0.05}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def made_up(numpy):
    """A smooth network of two weights: jax.numpy for ours, torch for the reference."""
    return lambda p, x, t, context: numpy.tanh(p["a"] * x + p["b"] + t / 900 + context) + 0.1 * x


def network(params):
    def apply(x, t, context, gamma=None):
        return made_up(jnp)(params, x, per_example(t, x), per_example(context.mean((1, 2)), x))

    return apply


def examples():
    latents, context = jnp.asarray(normal(0, BATCH, *SHAPE)), jnp.asarray(normal(1, BATCH, 1, 2))
    return Examples(latents, context, 0 * context, jnp.arange(BATCH) + 5)


def draws_at(gamma, w=2.5):
    index = jnp.asarray(np.random.default_rng(2).integers(0, 20, BATCH)).at[:2].set((0, 19))
    starts = Starts(index, jnp.asarray(normal(3, BATCH, *SHAPE)), w)
    return Draws(starts, jnp.broadcast_to(jnp.asarray(gamma, float), (BATCH, len(gamma))))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_chord_is_the_teachers_euler_step(shift):
    """x~ = x_e + (t_g - e) v, and the network is told t_g alone."""
    schedule, batch = FlowMatching(shift), examples()
    teacher = network(TEACHER)
    grid = schedule.grid(20) / 1000
    s, e = grid[[0, 7, 18, 19]], np.array([0, *grid])[[0, 7, 18, 19]]
    x_s, context = jnp.asarray(normal(4, 4, *SHAPE)), batch.context[:4]
    gamma, seen = jnp.asarray([0.2, 0.5, 0.9, 0.4]), {}

    def spy(x, t, context, told):
        seen.update(x=x, t=t, gamma=told)
        return x

    predict = guided(teacher, schedule, context, None, 0.0)
    x_e = ddim_solve(predict, schedule, x_s, jnp.asarray(1000 * s), jnp.asarray(1000 * e))
    v = teacher(x_s, jnp.asarray(1000 * s), context)
    np.testing.assert_allclose(x_e, x_s - per_example(s - e, x_s) * v, atol=1e-13)
    at_s, at_e = (schedule.at(1000 * jnp.asarray(t)) for t in (s, e))
    scales = at_s, at_e, schedule.end_weight(at_s, at_e)
    x_g, alpha_g, sigma_g = interpolate(x_s, x_e, scales, gamma, "linear")
    point = Point(x_g, jnp.asarray(1000 * s), gamma, alpha_g, sigma_g)
    f = consistency_function(spy, schedule, point, context, "snr")
    t_g = e + gamma * (s - e)
    chord = x_e + per_example(t_g - e, x_e) * v
    np.testing.assert_allclose(seen["x"], chord, atol=1e-13)
    np.testing.assert_allclose(seen["t"], 1000 * t_g, atol=1e-10)
    assert seen["gamma"].tolist() == [1] * 4
    np.testing.assert_allclose(f, chord - per_example(t_g, chord) * chord, atol=1e-13)


def test_the_published_chord_point_is_one_of_that_line():
    """gamma x_s + (1 - gamma) r x_e, divided by alpha + sigma, at the time of its own noise."""
    schedule, s, e = FlowMatching(), 0.9, 0.6
    x_s, v = normal(5, 2, *SHAPE)
    x_e = x_s - (s - e) * v
    for gamma in (0.0, 0.25, 0.7, 1.0):
        r = (1 - s) / (1 - e)
        point = gamma * x_s + (1 - gamma) * r * x_e
        sigma = gamma * s + (1 - gamma) * r * e
        ratio = (1 - gamma) * e / (1 - e) + gamma * s / (1 - s)
        t = float(schedule.time_of(jnp.float64(1 - s), jnp.float64(sigma))) / 1000
        assert t == pytest.approx(ratio / (1 + ratio), rel=1e-12)
        n = float(schedule.norm(jnp.float64(1 - s), jnp.float64(sigma)))
        assert n == pytest.approx((1 - s) / (1 - t), rel=1e-12)
        np.testing.assert_allclose(point / n, x_e + (t - e) * v, atol=1e-12)


def losses(method, gamma, nets):
    schedule = FlowMatching(3.0)
    bound = tuple(map(network, nets))
    return np.asarray(slam_loss(bound, schedule, examples(), draws_at(gamma), method))


def test_a_student_equal_to_its_target_pays_nothing_at_the_end_of_the_sub_path():
    method = Slam(**FLOW, distance="l2", num_ddim_timesteps=20)
    found = losses(method, [0.0, 0.5], (PARAMS, PARAMS, TEACHER))
    assert np.all(found[:, 0] < 1e-25) and np.all(found[:, 1] > 1e-6)


@pytest.mark.parametrize("substeps", [1, 3])
def test_gamma_one_is_latent_consistency_distillation(substeps):
    options = dict(num_ddim_timesteps=20, w=2.5, solver_substeps=substeps, huber_c=0.01)
    schedule, batch, key = FlowMatching(3.0), examples(), jax.random.key(1)
    nets = Networks(network, network, network(TEACHER), schedule)
    slam = Slam(**FLOW, gamma="one", **options).loss(PARAMS, EMA, nets, batch, key)[0]
    lcm = Lcm(**options).loss(PARAMS, EMA, nets, batch, key)[0]
    np.testing.assert_allclose(slam, lcm, rtol=1e-12)
    assert np.all(np.asarray(lcm) > 0)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_one_point_data_gives_that_point(gamma):
    """v = (x - point) / t everywhere; at t = 0 f is x whatever the network says."""
    schedule, point = FlowMatching(2.0), jnp.asarray(normal(6, 1, *SHAPE))

    def denoise(x, t, context, told=None):
        return (x - point) / per_example(jnp.maximum(t / 1000, 1e-9), x)

    starts, _ = draws_at([gamma])
    grid = schedule.grid(20)
    s = jnp.asarray(grid)[starts.index]
    e = jnp.asarray(np.array([0, *grid[:-1]]))[starts.index]
    at_s, at_e = schedule.at(s), schedule.at(e)
    x_s = per_example(at_s[0], point) * point + per_example(at_s[1], point) * starts.eps
    x_e = ddim_solve(guided(denoise, schedule, None, None, 0.0), schedule, x_s, s, e)
    scales, gammas = (at_s, at_e, schedule.end_weight(at_s, at_e)), jnp.full(BATCH, gamma)
    x_g, alpha_g, sigma_g = interpolate(x_s, x_e, scales, gammas, "linear")
    where = Point(x_g, s, gammas, alpha_g, sigma_g)
    f = consistency_function(denoise, schedule, where, None, "snr")
    np.testing.assert_allclose(f, jnp.broadcast_to(point, f.shape), atol=1e-8)


def gaussian_velocity(mean, std):
    """E[eps - x_0 | x_t] when every element of x_0 is N(mean, std^2)."""

    def denoise(x, t, context, told=None):
        t = per_example(t / 1000, x)
        variance = (1 - t) ** 2 * std**2 + t**2
        return (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean) - mean

    return denoise


def test_euler_converges_to_the_flow_of_gaussian_data_with_order_one():
    """x_t = (1 - t) mean + sqrt((1 - t)^2 std^2 + t^2) z, with one z along a trajectory."""
    mean, std, schedule = 0.7, 0.4, FlowMatching()
    x_s, s, e = jnp.asarray(normal(7, 3, *SHAPE)), 0.9, 0.3

    def spread(t):
        return np.sqrt((1 - t) ** 2 * std**2 + t**2)

    exact = (1 - e) * mean + spread(e) / spread(s) * (x_s - (1 - s) * mean)
    predict = guided(gaussian_velocity(mean, std), schedule, None, None, 0.0)
    at = [jnp.full(3, 1000 * t) for t in (s, e)]
    errors = []
    for substeps in (4, 8, 16, 32):
        found = jit(lambda n=substeps: ddim_solve(predict, schedule, x_s, *at, n))()
        errors.append(float(np.abs(found - exact).max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.diff(np.abs(orders - 1)) < 0) and abs(orders[-1] - 1) < 0.1


def test_the_velocity_of_gaussian_data_means_its_denoiser():
    mean, std, schedule = 0.7, 0.4, FlowMatching()
    x, t = jnp.asarray(normal(8, 3, *SHAPE)), jnp.asarray([1.0, 400.0, 999.0])
    alpha, sigma = (per_example(a, x) for a in schedule.at(t))
    x0, eps = schedule.to_x0_and_eps(gaussian_velocity(mean, std)(x, t, None), x, *schedule.at(t))
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    np.testing.assert_allclose(x0, mean + gain * (x - alpha * mean), atol=1e-12)
    np.testing.assert_allclose(alpha * x0 + sigma * eps, x, atol=1e-12)
    np.testing.assert_allclose(schedule.training_target(x0, eps, t), eps - x0)


def torch_loss(params, batch, draws, method, shift):
    """Loss of each example and gamma, by the formulas of the module's docstring."""
    net, count = made_up(torch), method.num_ddim_timesteps

    def shifted(u):
        return shift * u / (1 + (shift - 1) * u)

    found = []
    for row in range(BATCH):
        x0, context, eps = (
            torch.from_numpy(np.array(a[row])) for a in (batch[0], batch[1], draws.starts.eps)
        )
        j, context = int(draws.starts.index[row]), context.mean()
        w = float(np.broadcast_to(draws.starts.w, BATCH)[row])
        s, e = shifted((j + 1) / count), shifted(j / count)
        with torch.no_grad():
            x_s = (1 - s) * x0 + s * eps
            x_e, step = x_s, (s - e) / method.solver_substeps
            for i in range(method.solver_substeps):
                t = 1000 * (s - i * step)
                cond, uncond = net(TEACHER, x_e, t, context), net(TEACHER, x_e, t, 0 * context)
                x_e = x_e - step * (cond + w * (cond - uncond))
            wanted = x_e - e * net(EMA, x_e, 1000 * e, context)
        for gamma in np.asarray(draws.gamma[row]):
            t = e + float(gamma) * (s - e)
            x = float(gamma) * x_s + (1 - float(gamma)) * x_e
            difference = x - t * net(params, x, 1000 * t, context) - wanted
            found.append(((difference**2 + method.huber_c**2).sqrt() - method.huber_c).mean())
    return torch.stack(found).reshape(BATCH, -1)


@pytest.mark.parametrize(
    ("shift", "changes"),
    [
        (1.0, {}),
        (3.0, dict(gamma="paired", gammas_per_subpath=2, solver_substeps=2, w_spread=1.5)),
    ],
)
def test_loss_and_gradient_are_those_of_the_formulas(shift, changes):
    options = dict(num_ddim_timesteps=20, w=2.5, huber_c=0.01, **FLOW, **changes)
    method, schedule, batch = Slam(**options), FlowMatching(shift), examples()
    key = jax.random.key(3)

    def mean_loss(params):
        nets = Networks(network, network, network(TEACHER), schedule)
        found, _ = method.loss(params, EMA, nets, batch, key)
        return found.mean(), found

    gradient, found = jit(jax.grad(mean_loss, has_aux=True))(PARAMS)
    params = {
        k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in PARAMS.items()
    }
    expected = torch_loss(params, batch, draw(key, batch.index, SHAPE, method), method, shift)
    expected.mean().backward()
    np.testing.assert_allclose(found, expected.mean(dim=1).detach().numpy(), rtol=1e-9)
    for name, value in params.items():
        assert float(gradient[name]) == pytest.approx(value.grad.item(), rel=1e-8)


def test_phased_consistency_leaps_to_edges_on_the_shifted_grid():
    """F(x, t, u) = x - (t - u) v, by hand; with one phase it is latent consistency distillation."""
    options = dict(num_ddim_timesteps=20, w=2.5, distance="l2")
    schedule, batch, key = FlowMatching(3.0), examples(), jax.random.key(1)
    nets = Networks(network, network, network(TEACHER), schedule)

    def loss(method):
        return np.asarray(method.loss(PARAMS, EMA, nets, batch, key)[0])

    np.testing.assert_allclose(loss(Pcm(phases=1, **options)), loss(Lcm(**options)), rtol=1e-12)
    method = Pcm(phases=4, **options)
    starts, _ = draw_starts(key, batch.index, SHAPE, method)
    unshifted = np.arange(21) / 20
    grid = 3 * unshifted / (1 + 2 * unshifted)
    np.testing.assert_allclose(method.timesteps(4, schedule) / 1000, grid[[20, 15, 10, 5]])

    def leap(params, x, t, u, context):
        return x - (t - u) * np.asarray(made_up(np)(params, x, 1000 * t, context))

    for row, found in enumerate(loss(method)):
        j, context = int(starts.index[row]), float(batch.context[row].mean())
        s, e, edge = grid[j + 1], grid[j], grid[j // 5 * 5]
        x_s = (1 - s) * np.asarray(batch.latents[row]) + s * np.asarray(starts.eps[row])
        cond, uncond = (made_up(np)(TEACHER, x_s, 1000 * s, c) for c in (context, 0.0))
        x_e = x_s - (s - e) * (cond + 2.5 * (cond - uncond))
        wanted = leap(EMA, x_e, e, edge, context)
        difference = leap(PARAMS, x_s, s, edge, context) - wanted
        assert found == pytest.approx(np.mean(difference**2), rel=1e-10)
    assert len({int(j) // 5 for j in starts.index}) == 4


@pytest.mark.parametrize(
    ("method", "key"),
    [
        (Slam(conditioning="snr"), "sigma"),
        (Slam(sigma="linear"), "conditioning"),
        (SlamLiteral(), "name"),
    ],
)
def test_what_the_paper_defines_for_other_teachers_alone_is_refused(method, key):
    with pytest.raises(OptionError, match="flow-matching teacher") as caught:
        method.check(FlowMatching())
    assert caught.value.key == key
    Slam(**FLOW, num_ddim_timesteps=30).check(FlowMatching())
    Lcm(num_ddim_timesteps=7).check(FlowMatching())
