"""A distillation step of a small transformer of Stable Diffusion 3 against torch in float64.

The networks there are diffusers'; the method is written out once more, one equation after another:

    x_t = (1 - t) x_0 + t eps,   t_j = shift((j + 1) / M),   s = t_j,  e = t_{j - 1}, of the first 0
    x_e: p Euler steps of the teacher, x <- x - h (v_c + w (v_c - v_u)),  h = (s - e) / p
    x_g = g x_s + (1 - g) x_e  at  t_g = g s + (1 - g) e
    loss = mean of h(x_g - t_g v(x_g, t_g) - (x_e - e v-(x_e, e))),  v- with the EMA
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from helpers import assert_same_gradients, jit
from small_sd3 import NETWORK, PIPELINE, Rows, embedded_empty

from slam_jax.families.latent_pipeline import EMPTY
from slam_jax.families.pipeline import DENOISER, student_params
from slam_jax.formats.convert import to_torch
from slam_jax.method.method import gaussian
from slam_jax.method.slam import Slam, draw
from slam_jax.models.mmdit import PLACES
from slam_jax.parallel.keys import ENCODE
from slam_jax.recipes.distil import distillation_loss

COUNT, SHIFT = 4, 3.0
METHOD = Slam(
    num_ddim_timesteps=20,
    solver_substeps=2,
    w=2.5,
    sigma="linear",
    conditioning="snr",
    gamma="paired",
    gammas_per_subpath=2,
    huber_c=0.01,
)


def moved(params, seed, by=0.03):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + by * rng.standard_normal(leaf.shape), params
    )


def in_torch(params, teacher):
    """A transformer of diffusers, whose features of places are the teacher's."""
    network = SD3Transformer2DModel.from_config(NETWORK.to_dict()).to(torch.float64)
    arrays = {**to_torch(params), PLACES: teacher["pos_embed"]["pos_embed"]}
    network.load_state_dict({name: torch.tensor(np.array(a)) for name, a in arrays.items()})
    return network


def tensor(array):
    """float64, channels first where there are pictures."""
    found = torch.tensor(np.array(array), dtype=torch.float64)
    return found.movedim(-1, 1) if found.ndim == 4 else found


def torch_losses(networks, batch, draws, noise):
    """The loss of each example and gamma: [B, G]."""
    student, target, teacher = networks
    texts = [tensor(batch[name]) for name in ("encoder_hidden_states", "text_embeds")]
    empty = [tensor(array).expand(COUNT, *array.shape[1:]) for array in embedded_empty().values()]
    mean, logvar = tensor(batch["moments"]).chunk(2, dim=1)
    x0 = (mean + (logvar / 2).exp() * tensor(noise) - 0.1) * 0.18215

    def v(network, x, t, context):
        hidden, pooled = context
        return network(x, hidden, pooled, 1000 * t.flatten()).sample

    def shifted(u):
        return (SHIFT * u / (1 + (SHIFT - 1) * u))[:, None, None, None]

    j, count = tensor(draws.starts.index), METHOD.num_ddim_timesteps
    s, e = shifted((j + 1) / count), shifted(j / count)
    with torch.no_grad():
        x_s = (1 - s) * x0 + s * tensor(draws.starts.eps)
        x_e, h = x_s, (s - e) / METHOD.solver_substeps
        for i in range(METHOD.solver_substeps):
            conditional, empties = (v(teacher, x_e, s - i * h, c) for c in (texts, empty))
            x_e = x_e - h * (conditional + METHOD.w * (conditional - empties))
        wanted = x_e - e * v(target, x_e, e, texts)
    losses = []
    for gamma in tensor(draws.gamma).unbind(dim=1):
        g = gamma[:, None, None, None]
        t, x = g * s + (1 - g) * e, g * x_s + (1 - g) * x_e
        d = x - t * v(student, x, t, texts) - wanted
        c = METHOD.huber_c
        losses.append(((d**2 + c**2).sqrt() - c).mean(dim=(1, 2, 3)))
    return torch.stack(losses, dim=1)


@pytest.mark.slow  # compiles the gradient
def test_losses_and_gradients_are_those_of_torch():
    """In float64 here too, but for what a network of bfloat16 has in float32: times, its output."""
    teacher = jax.device_get(PIPELINE.init(NETWORK, jax.random.key(1)))
    places = teacher["pos_embed"]["pos_embed"]
    teacher = moved(teacher, 0, 0.2)
    teacher["pos_embed"]["pos_embed"] = np.asarray(places, np.float64)
    student = moved(student_params(PIPELINE, METHOD, teacher), 1)
    ema = moved(student, 2)
    batch, _ = Rows().read(np.arange(COUNT), np.arange(COUNT))
    key, examples = jax.random.key(7), jnp.arange(COUNT)
    loss, shape = distillation_loss(PIPELINE, METHOD), PIPELINE.latent_shape
    with jax.enable_x64(True):

        def mean_loss(params, ema, teacher):
            frozen = {DENOISER: teacher, EMPTY: embedded_empty()}
            losses, _ = loss(params, ema, frozen, batch, examples, key)
            return losses.mean(), losses

        grad = jit(jax.grad(mean_loss, argnums=(0, 1, 2), has_aux=True))
        (actual, *others), losses = jax.device_get(grad(student, ema, teacher))
        draws = jax.device_get(draw(key, examples, shape, METHOD))
        noise = gaussian(jax.random.fold_in(key, ENCODE), examples, shape)
    networks = [in_torch(params, teacher) for params in (student, ema, teacher)]
    expected = torch_losses(networks, batch, draws, noise)
    expected.mean().backward()
    np.testing.assert_allclose(losses, expected.mean(dim=1).detach().numpy(), rtol=1e-5)
    gradients = {name: p.grad.numpy() for name, p in networks[0].named_parameters()}
    assert len({int(j) for j in draws.starts.index}) > 2 and min(expected.flatten()) > 1e-3
    # The float32 output is rounded where the loss is steep: 1.3e-5 on some processors.
    assert_same_gradients(to_torch(actual), gradients, 3e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(others))
