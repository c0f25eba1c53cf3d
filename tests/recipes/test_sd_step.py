"""Whole distillation steps of tiny Stable Diffusion models against torch and diffusers.

The reference, `torch_slam`, is another implementation of the method, with the networks, the
tokenizers and the prompts' encoding of diffusers and transformers. It computes in float64, so that
a difference is our float32 rounding or a defect. Random numbers are inputs: ours, fed to both.
"""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_stable_diffusion
import torch
from helpers import assert_close, jit
from torch_slam import TorchSlam

from slam_jax.config.options import Optimizer, Training
from slam_jax.families.pipeline import DENOISER, student_config, student_network, student_params
from slam_jax.families.stable_diffusion_folder import read_pipeline, read_surroundings, read_unet
from slam_jax.formats.convert import to_torch
from slam_jax.formats.diffusers_folder import resolve
from slam_jax.method.method import gaussian
from slam_jax.method.slam import Slam, draw
from slam_jax.parallel.keys import ENCODE
from slam_jax.parallel.sharding import make_mesh, shard, shard_batch
from slam_jax.recipes.distil import distillation_loss
from slam_jax.training.step import init_state, make_optimizer, make_train_step

CAPTIONS = (
    "two cats sleeping on a red sofa next to the window",
    "",
    "the old city at night, cinematic light, highly detailed",
    "a bowl of fruit; a 2nd bowl",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(teachers):
    """Name of a teacher -> it in both implementations, with weights."""

    @functools.cache
    def build(name):
        folder = resolve(str(teachers[name]))
        pipeline = read_pipeline(folder)
        frozen = read_surroundings(folder, pipeline, "float32", "float32")
        frozen[DENOISER] = read_unet(folder, pipeline, "float32")
        return SimpleNamespace(pipeline=pipeline, frozen=frozen, torch=TorchSlam(folder.path))

    return build


def student_and_ema(model, method):
    """Weights of which none is zero, and none is the teacher's."""
    rng = np.random.default_rng(0)

    def moved(params, by):
        return jax.tree.map(
            lambda leaf: leaf + by * rng.standard_normal(leaf.shape).astype(np.float32), params
        )

    student = moved(student_params(model.pipeline, method, model.frozen[DENOISER]), 0.03)
    return student, moved(student, 0.02)


def smooth_pictures(count, height, width):
    """uint8 [count, height, width, 3], unlike each other."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width] / height
    waves = np.array([np.sin(5 * (a * x + b * y) + a) for a, b in rng.uniform(-2, 2, (6, 2))])
    colours = np.einsum("nhw,bnc->bhwc", waves, rng.uniform(-60, 60, (count, 6, 3)))
    return (colours + rng.uniform(90, 160, (count, 1, 1, 3))).clip(0, 255).astype(np.uint8)


def make_batch(model, count):
    """(our batch of pictures and prompts, the prompts)."""
    pipeline = model.pipeline
    prompts = [CAPTIONS[i % len(CAPTIONS)] for i in range(count)]
    batch = {"images": smooth_pictures(count, *pipeline.image_size), **pipeline.prompts(prompts)}
    row = np.arange(count, dtype=np.float32)
    batch["time_ids"][:, :4] = np.stack([90 + 10 * row, 70 - row, 3 * row, 5 - row % 3], axis=1)
    return batch, prompts


def key_with_both_ends(examples, method):
    """A key that draws the first and the last sub-path of the schedule."""

    def index(seed):
        return draw(jax.random.key(seed), examples, (1, 1, 1), method).starts.index

    drawn = np.asarray(jit(jax.vmap(index))(jnp.arange(4000)))
    both = (drawn == 0).any(axis=1) & (drawn == method.num_ddim_timesteps - 1).any(axis=1)
    return jax.random.key(np.flatnonzero(both)[0])


def nchw(array):
    return torch.from_numpy(np.array(array)).movedim(-1, 1)


def torch_losses(model, student, ema, batch, prompts, key, method):
    """The losses by torch, of the draws that our loss makes with `key`."""
    shape, examples = model.pipeline.latent_shape, jnp.arange(len(prompts))
    draws = draw(key, examples, shape, method)
    noise = gaussian(jax.random.fold_in(key, ENCODE), examples, shape)
    return model.torch.losses(
        student,
        ema,
        model.torch.latents(nchw(batch["images"]), nchw(noise).double()),
        model.torch.contexts(prompts, torch.from_numpy(batch["time_ids"])),
        (
            torch.from_numpy(np.array(draws.starts.index)).long(),
            torch.from_numpy(np.array(draws.gamma)).double(),
            nchw(draws.starts.eps).double(),
        ),
        method,
    )


def gradients(unet):
    return {name: parameter.grad.numpy() for name, parameter in unet.named_parameters()}


def weights(unet):
    return {name: p.detach().numpy().copy() for name, p in unet.named_parameters()}


def difference(tree, other):
    return {name: tree[name] - other[name] for name in tree}


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in tree.values()))


def relative_error(actual, expected):
    """Of two dicts of arrays, of all their elements together."""
    assert actual.keys() == expected.keys()
    return norm(difference(actual, expected)) / norm(expected)


def assert_trees_close(actual, expected, tolerance):
    """As a whole, and tensor by tensor; one that is almost zero is allowed the rounding errors of
    the others."""
    assert relative_error(actual, expected) <= tolerance
    floor = 1e-3 * norm(expected) / np.sqrt(len(expected))
    errors = {
        name: norm({0: actual[name] - expected[name]}) / (norm({0: expected[name]}) + floor)
        for name in expected
    }
    assert max(errors.values()) <= tolerance, max(errors, key=errors.get)


# (teacher, method); the authors' recipe is in the test of training steps.
CASES = {
    "sd15": (
        "sd15",
        Slam(
            solver_substeps=2,
            conditioning="both",
            sigma="linear",
            gamma="paired",
            gammas_per_subpath=2,
        ),
    ),
    "sd21_v zero SNR": ("zero_snr", Slam(w=4.0, conditioning="snr", num_ddim_timesteps=40)),
    "sdxl": ("sdxl", Slam(w=7.0, conditioning="both")),
    "sd15 without guidance": (
        "sd15",
        Slam(w=0.0, conditioning="snr", sigma="linear", distance="l2"),
    ),
    "sd21_v": ("sd21_v", Slam(num_ddim_timesteps=40)),
}
NIGHTLY = ("sd15 without guidance", "sd21_v", "sd21_v zero SNR", "sdxl")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.nightly if case in NIGHTLY else ()) for case in CASES],
)
def test_losses_and_gradients_are_those_of_torch(model, case):
    teacher, method = CASES[case]
    model = model(teacher)
    student, ema = student_and_ema(model, method)
    batch, prompts = make_batch(model, 4)
    examples = jnp.arange(4)
    key = key_with_both_ends(examples, method)
    loss = distillation_loss(model.pipeline, method)

    def mean_loss(params, ema, teacher, frozen, batch, key):
        losses, _ = loss(params, ema, {**frozen, DENOISER: teacher}, batch, examples, key)
        return losses.mean(), losses

    grad = jit(jax.grad(mean_loss, argnums=(0, 1, 2), has_aux=True))
    (actual, *others), losses = grad(student, ema, model.frozen[DENOISER], model.frozen, batch, key)

    reference = model.torch.student(to_torch(student))
    target = model.torch.student(to_torch(ema))
    expected = torch_losses(model, reference, target, batch, prompts, key, method)
    expected.mean().backward()
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-4)
    assert_trees_close(to_torch(actual), gradients(reference), 1e-3)
    # Nothing is learnt by the target and the teacher.
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(others))


@pytest.mark.slow
def test_two_training_steps_are_those_of_torch(model):
    """The authors' recipe, but for the learning rate, and with weight decay; on eight devices.

    Adam's first step is the learning rate times the sign of the gradient, whatever its size: an
    element whose gradient is below the rounding errors may go either way. The errors of the moments
    say more, and so does the second step: it divides by the root of two gradients' squares, which
    are seldom small both.
    """
    model, method, decay, count = model("sd15"), Slam(), 0.95, 8
    options = Optimizer(learning_rate=1e-4, weight_decay=0.1)
    mesh, tx, key = make_mesh(), make_optimizer(options, 2), jax.random.key(3)
    batch, prompts = make_batch(model, count)
    params, ema = student_and_ema(model, method)
    loss = distillation_loss(model.pipeline, method)
    step = make_train_step(loss, tx, Training(ema=decay, batch_size=count), key, mesh)
    state = dataclasses.replace(init_state(shard(params, mesh), tx, mesh), ema=shard(ema, mesh))

    reference = model.torch.student(to_torch(params))
    target = model.torch.student(to_torch(ema))
    adamw = torch.optim.AdamW(
        reference.parameters(), options.learning_rate, weight_decay=options.weight_decay
    )
    for number, tolerance in enumerate((2e-2, 5e-3)):
        ours_before, ours_ema_before = to_torch(state.params), to_torch(state.ema)
        before, ema_before = weights(reference), weights(target)
        state, metrics = step(state, model.frozen, shard_batch(batch, mesh))

        step_key = jax.random.fold_in(key, number)
        value = torch_losses(model, reference, target, batch, prompts, step_key, method).mean()
        adamw.zero_grad()
        value.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), options.clip_norm)
        adamw.step()
        with torch.no_grad():
            for average, new in zip(target.parameters(), reference.parameters(), strict=True):
                average.copy_(decay * average + (1 - decay) * new)

        assert grad_norm > 2 * options.clip_norm
        np.testing.assert_allclose(metrics["loss"], value.item(), rtol=1e-4)
        np.testing.assert_allclose(metrics["grad_norm"], grad_norm.item(), rtol=1e-4)
        moments = {name: adamw.state[p] for name, p in reference.named_parameters()}
        for ours, name in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
            expected = {path: moment[name].numpy() for path, moment in moments.items()}
            assert_trees_close(to_torch(optax.tree.get(state.opt_state, ours)), expected, 1e-3)
        update = difference(to_torch(state.params), ours_before)
        assert relative_error(update, difference(weights(reference), before)) <= tolerance
        update = difference(to_torch(state.ema), ours_ema_before)
        assert relative_error(update, difference(weights(target), ema_before)) <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny_stable_diffusion.FAMILIES)
def test_the_student_starts_as_the_teacher_for_every_gamma(model, family):
    model, method = model(family), Slam(conditioning="embedding")
    config = student_config(model.pipeline, method)
    x = np.random.default_rng(2).standard_normal((5, *model.pipeline.latent_shape), np.float32)
    t, gamma = np.array([999, 0, 19, 500, 979]), np.array([0, 0.01, 0.3, 0.9, 1], np.float32)
    batch, prompts = make_batch(model, 5)
    context, _ = model.torch.contexts(prompts, torch.from_numpy(batch["time_ids"]))
    with torch.no_grad():
        expected = model.torch.unet(nchw(x).double(), torch.from_numpy(t), **context).sample
    ours = {"encoder_hidden_states": context["encoder_hidden_states"].float().numpy()}
    if "added_cond_kwargs" in context:
        added = context["added_cond_kwargs"].items()
        ours["added_cond"] = {name: value.float().numpy() for name, value in added}
    network = student_network(model.pipeline, config)
    student = jit(lambda params: network(params)(x, t, ours, gamma))
    params = student_params(model.pipeline, method, model.frozen[DENOISER])
    assert "cond_proj" in params["time_embedding"]
    assert_close(student(params), expected.movedim(1, -1), 1e-4)
