"""The loss of a teacher that is trained here."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PREDICTION_TYPES, as_output, jit, normal, sd_schedule

from slam_jax.families.pipeline import DENOISER
from slam_jax.method.schedule import per_example
from slam_jax.recipes.teacher import TIME_BINS, denoising_loss

SHAPE, COUNT, DROPOUT = (2, 2, 4), 4000, 0.25
POINT = normal(0, *SHAPE).astype(np.float32)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_best_network_pays_for_what_it_adds_to_the_target_only(prediction_type):
    """All data are one point, so x says its noise. The network adds what it is told of the prompt:
    1 with one and 0 without."""
    schedule = sd_schedule(prediction_type)

    def network(params, x, t, context, gamma):
        alpha, sigma = (per_example(a, x) for a in schedule.at(t))
        told = per_example(context["told"], x)
        return as_output(jnp.asarray(POINT)[None], x, alpha, sigma, prediction_type) + told

    ones = jnp.ones(COUNT)
    pipeline = SimpleNamespace(
        network=None,
        schedule=schedule,
        latent_shape=SHAPE,
        constants=(),
        apply=lambda network_config: network,
        latents=lambda frozen, batch, key, examples: jnp.broadcast_to(POINT, (COUNT, *SHAPE)),
        contexts=lambda frozen, batch, w: ({"told": ones}, {"told": 0 * ones}),
    )
    loss = denoising_loss(pipeline, DROPOUT)
    compute = jit(lambda: loss({DENOISER: {}}, {}, {}, {}, jnp.arange(COUNT), jax.random.key(0)))
    losses, sums = jax.device_get(compute())
    # Near t = 0 sigma is 0.03: x says the noise to three digits.
    dropped = losses < 0.5
    np.testing.assert_allclose(losses, ~dropped, atol=1e-3)
    assert abs(dropped.mean() - DROPOUT) < 4 * np.sqrt(DROPOUT * (1 - DROPOUT) / COUNT)
    assert set(sums) == {f"loss_t{i}" for i in range(TIME_BINS)}
    totals, counts = np.array([sums[f"loss_t{i}"] for i in range(TIME_BINS)], float).T
    assert counts.sum() == COUNT and totals.sum() == pytest.approx(losses.sum(), rel=1e-5)
    assert np.all(np.abs(counts / COUNT - 1 / TIME_BINS) < 4 * np.sqrt(0.25 * 0.75 / COUNT))
