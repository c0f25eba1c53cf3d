"""A teacher's guidance, wherever it is drawn from, against the usual scale in diffusers' DDIM."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SD, sd_schedule

import slam_jax
from slam_jax import api
from slam_jax.config.options import Precision
from slam_jax.families.family import Model
from slam_jax.method.lcm import Lcm
from slam_jax.method.method import gaussian
from slam_jax.parallel.keys import keys_of
from slam_jax.parallel.sharding import make_mesh
from slam_jax.recipes.run import _artists

SCALE, STEPS, SEED, SHAPE, TEXTS = 4.0, 3, 5, (2, 2, 4), ["a", "b"]
HALF_A_LEVEL = 0.51 / 127.5  # of a picture in uint8; another w changes ten times as much
STUDENT_LEARNT = Lcm(w=SCALE - 1)


def network(numpy, x, context):
    """Almost x, so that the latents stay small."""
    return x + numpy.tanh(x + context) / 50


# A family without weights, whose prompts are all 0.4 and whose empty prompt is -0.4.
PIPELINE = SimpleNamespace(
    network=None,
    latent_shape=SHAPE,
    schedule=sd_schedule(),
    apply=lambda *_: lambda params, x, t, context, gamma: network(jnp, x, context),
    prompts=lambda texts: {"tokens": np.zeros((len(texts), 1), np.int32)},
    contexts=lambda frozen, batch, w: [
        jnp.full((len(batch["tokens"]), 1, 1, 1), prompt) for prompt in (0.4, -0.4)
    ],
    decode=lambda frozen, latents: jnp.tanh(latents),
)
TEACHER = Model(PIPELINE, {}, {}, None)


@pytest.fixture(scope="module")
def expected():
    import diffusers
    import torch

    scheduler = diffusers.DDIMScheduler(
        **SD, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
    )
    scheduler.set_timesteps(STEPS)
    x = torch.from_numpy(np.array(gaussian(keys_of(SEED).noise, jnp.arange(2), SHAPE)))
    for t in scheduler.timesteps.tolist():
        cond, uncond = network(torch, x, 0.4), network(torch, x, -0.4)
        x = scheduler.step(uncond + SCALE * (cond - uncond), t, x).prev_sample
    return torch.tanh(x).numpy()


def drawn_by(artists):
    return artists.teacher({}, {}, PIPELINE.prompts(TEXTS), (SEED, 0), steps=STEPS)


def test_sample_draws_with_the_scale_that_is_asked_for(expected):
    pictures = slam_jax.sample(TEACHER, TEXTS, STEPS, seed=SEED, guidance=SCALE)
    np.testing.assert_allclose(pictures / 127.5 - 1, expected, atol=HALF_A_LEVEL)


def test_a_runs_ladder_has_the_guidance_that_the_student_learns(expected):
    run = SimpleNamespace(
        family=SimpleNamespace(pipeline=PIPELINE),
        config=SimpleNamespace(method=STUDENT_LEARNT, precision=Precision()),
        mesh=make_mesh(),
    )
    pictures = drawn_by(_artists(run, {}, None))
    np.testing.assert_allclose(pictures, expected, atol=HALF_A_LEVEL)


@pytest.mark.parametrize(("method", "asked"), [(STUDENT_LEARNT, None), (Lcm(w=0.0), SCALE)])
def test_evaluate_compares_with_it_or_the_scale_that_is_asked_for(
    expected, monkeypatch, method, asked
):
    found = []
    ladder = SimpleNamespace(report=lambda *_: [])
    monkeypatch.setattr(api, "Ladder", lambda artists, *_: found.append(artists) or ladder)
    slam_jax.evaluate(Model(PIPELINE, {}, {}, method), TEACHER, guidance=asked)
    np.testing.assert_allclose(drawn_by(*found), expected, atol=HALF_A_LEVEL)
