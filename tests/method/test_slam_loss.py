"""The SLAM loss as a whole: who gets gradients, what costs nothing, what must not matter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PREDICTION_TYPES, as_output, gaussian_x0, jit, normal, sd_schedule

from slam_jax.method.consistency import CONDITIONINGS
from slam_jax.method.method import Examples
from slam_jax.method.schedule import per_example
from slam_jax.method.slam import Draws, Slam, slam_loss
from slam_jax.method.sub_path import Starts

INDEX = (1, 20, 49)
SHAPE = (2, 2, 4)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def network(weights):
    """A smooth made-up network; a student also takes gamma, and depends on it."""

    def apply(x, t, context, gamma=None):
        t = per_example(jnp.asarray(t, x.dtype), x)
        told = 0.0 if gamma is None else 0.2 * per_example(gamma, x)
        shift = per_example(context.mean(axis=(1, 2)), x)
        return jnp.tanh(weights["a"] * x + weights["b"] + t / 900 + shift) + told

    return apply


WEIGHTS = {"a": 1.1, "b": -0.2}
OTHER = {"a": 0.9, "b": 0.1}


def compute(method, schedule, student, target, teacher, gamma, index=INDEX):
    """Losses [B, G] on made-up latents, with the same list of gammas for every example."""
    dtype, batch = schedule.alphas.dtype, len(index)
    latents, eps = (jnp.asarray(a, dtype) for a in normal(0, 2, batch, *SHAPE))
    context = jnp.asarray(normal(1, batch, 1, 2), dtype)
    starts = Starts(jnp.asarray(index), eps, method.w)
    draws = Draws(starts, jnp.broadcast_to(jnp.asarray(gamma, dtype), (batch, len(gamma))))
    examples = Examples(latents, context, 0 * context, jnp.arange(batch))
    return slam_loss((student, target, teacher), schedule, examples, draws, method)


def losses(*args, **kwargs):
    return np.asarray(jit(lambda: compute(*args, **kwargs))())


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_student_equal_to_its_target_pays_nothing_at_the_end_of_the_sub_path(
    prediction_type, x64
):
    """With "snr" and gamma = 0 both see x_e at e; all that differs is c_skip, 1e-5 and falling."""
    method = Slam(conditioning="snr", distance="l2", gammas_per_subpath=2)
    same = network(WEIGHTS)
    actual = losses(method, sd_schedule(prediction_type), same, same, same, [0.0, 0.5])
    assert np.all(actual[:, 0] < 1e-8)
    assert np.all(actual[:, 1] > 1e-6)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_only_the_student_gets_gradients(conditioning):
    method = Slam(conditioning=conditioning, solver_substeps=2, gammas_per_subpath=2)

    def mean_loss(student, target, teacher):
        nets = network(student), network(target), network(teacher)
        return compute(method, sd_schedule(), *nets, [0.3, 1.0]).mean()

    for_student, *for_others = jit(jax.grad(mean_loss, (0, 1, 2)))(WEIGHTS, OTHER, OTHER)
    assert all(abs(g) > 1e-3 for g in jax.tree.leaves(for_student))
    assert jax.tree.leaves(for_others) == [0.0] * 4


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_students_gradient_is_the_slope_of_its_loss(conditioning, x64):
    method = Slam(conditioning=conditioning, sigma="linear", distance="l2")
    others = network(OTHER), network(OTHER)

    def mean_loss(a):
        return compute(method, sd_schedule(), network({**WEIGHTS, "a": a}), *others, [0.6]).mean()

    h = 1e-5
    above, below, slope = jit(
        lambda a: (mean_loss(a + h), mean_loss(a - h), jax.grad(mean_loss)(a))
    )(1.1)
    assert float(slope) == pytest.approx(float(above - below) / (2 * h), rel=1e-6)


@pytest.mark.parametrize(
    ("conditioning", "sigma"),
    [("embedding", "paper"), ("embedding", "linear"), ("snr", "paper"), ("both", "linear")],
)
def test_the_prediction_type_does_not_matter(conditioning, sigma, x64):
    """One denoiser, said as eps, v or x0, is one loss.

    A network says it with the scales of its input. With "snr" and "both" these are alpha and sigma
    of the real-valued t. With "embedding" they are alpha_s and sigma_g: the identity holds for
    networks that know the sub-path's scales, not for those that take x_g for a point of the PF-ODE.
    """
    method = Slam(conditioning=conditioning, sigma=sigma, solver_substeps=2, distance="l2")
    schedule = sd_schedule()
    log_ratio = jnp.log(schedule.sigmas / schedule.alphas)

    def scales(t, gamma):
        if conditioning == "embedding":
            t = jnp.asarray(t)
            e = jnp.maximum(t - 20, 0)
            (a_s, s_s), (a_e, s_e) = schedule.at(t), schedule.at(e)
            r = a_s / a_e
            linear = gamma * s_s + (1 - gamma) * r * s_e
            paper = jnp.sqrt((r * s_e) ** 2 + gamma**2 * (1 - r**2))
            return a_s, linear if sigma == "linear" else paper
        ratio = jnp.exp(jnp.interp(t, jnp.arange(1000.0), log_ratio))
        return 1 / jnp.sqrt(1 + ratio**2), ratio / jnp.sqrt(1 + ratio**2)

    def denoiser(mean, kind):
        def apply(x, t, context, gamma=None):
            alpha, sigma = schedule.at(t) if gamma is None else scales(t, gamma)
            alpha, sigma = per_example(alpha, x), per_example(sigma, x)
            shift = per_example(context.mean(axis=(1, 2)), x)
            return as_output(gaussian_x0(x, alpha, sigma, mean + shift, 0.4), x, alpha, sigma, kind)

        return apply

    def losses_by_type():
        for kind in PREDICTION_TYPES:
            nets = (denoiser(mean, kind) for mean in (0.1, 0.2, 0.3))
            yield compute(method, sd_schedule(kind), *nets, [0.4])

    actual = jit(lambda: list(losses_by_type()))()
    assert np.all(actual[0] > 1e-4)
    np.testing.assert_allclose(actual[1], actual[0], rtol=1e-9)
    np.testing.assert_allclose(actual[2], actual[0], rtol=1e-9)


@pytest.mark.parametrize(("conditioning", "sigma"), [("embedding", "paper"), ("both", "linear")])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_loss_and_gradient_are_finite_at_zero_terminal_snr(prediction_type, conditioning, sigma):
    """float32, s = N - 1 where alpha is almost 0, and s = k - 1 whose sub-path ends at e = 0."""
    schedule = sd_schedule(prediction_type, zero_snr=True)
    method, others = Slam(conditioning=conditioning, sigma=sigma), [network(OTHER)] * 2

    def mean_loss(weights):
        nets = network(weights), *others
        return compute(method, schedule, *nets, [0.0, 0.5, 1.0], (49, 0)).mean()

    value, gradient = jit(jax.value_and_grad(mean_loss))(WEIGHTS)
    assert np.isfinite(value)
    assert all(np.isfinite(g) and g != 0 for g in jax.tree.leaves(gradient))


def test_several_gammas_cost_one_teacher_and_one_target_call_and_change_nothing():
    schedule, calls = sd_schedule(), []

    def counting(name, weights):
        def apply(x, *args):
            calls.append((name, len(x)))
            return network(weights)(x, *args)

        return apply

    nets = counting("student", WEIGHTS), counting("target", OTHER), counting("teacher", OTHER)
    gammas = [0.0, 0.25, 0.7, 1.0]
    together = losses(Slam(gammas_per_subpath=4), schedule, *nets, gammas)
    assert sorted(calls) == [("student", 12), ("target", 3), ("teacher", 6)]
    apart = [losses(Slam(), schedule, *nets, [gamma])[:, 0] for gamma in gammas]
    np.testing.assert_allclose(together, np.stack(apart, axis=1), rtol=1e-4)


def test_every_choice_of_the_method_changes_the_loss():
    schedule, nets = sd_schedule(), [network(w) for w in (WEIGHTS, OTHER, OTHER)]
    changes = (
        dict(),
        dict(w=3.0),
        dict(num_ddim_timesteps=100),
        dict(solver_substeps=4),
        dict(sigma="linear"),
        dict(conditioning="snr"),
        dict(conditioning="both"),
        dict(distance="l2"),
        dict(huber_c=0.1),
    )
    methods = [dataclasses.replace(Slam(w=2.0), **change) for change in changes]
    before, *after = jit(lambda: [compute(m, schedule, *nets, [0.5]) for m in methods])()
    for change, changed in zip(changes[1:], after, strict=True):
        assert np.abs(changed / before - 1).max() > 1e-3, change
