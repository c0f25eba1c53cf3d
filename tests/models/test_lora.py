"""LoRA against peft's on the UNets of diffusers, with the same weights."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from helpers import assert_same_gradients
from torch_unets import (
    CONFIGS,
    example_inputs,
    jit,
    reference,
    relative_error,
    torch_params,
)

from slam_jax.base.options import OptionError
from slam_jax.formats import convert
from slam_jax.models import functional, lora
from slam_jax.models.published_networks import UNETS
from slam_jax.models.unet import UNet2DConditionModel

NAMES = {"lora_A.default": lora.DOWN, "lora_B.default": lora.UP}
RANK, ALPHA = 4, 6


def shapes(name, rank=RANK, targets=lora.TARGETS):
    return lora.abstract_adapters(abstract(CONFIGS[name]), rank, targets)


def abstract(config):
    return functional.abstract_params(UNet2DConditionModel, config)


def ours(key):
    """The key here of a key of peft."""
    for theirs, name in NAMES.items():
        key = key.replace(theirs, name)
    return key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_output_and_gradients_are_those_of_peft(name):
    config, inputs = CONFIGS[name], example_inputs(name)
    unet = diffusers.UNet2DConditionModel.from_config(config.to_dict())
    state = {key: torch.from_numpy(array) for key, array in reference(name).state_dict.items()}
    unet.load_state_dict(state)
    targets = list(lora.TARGETS)
    unet.requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    generator, found = torch.Generator().manual_seed(0), {}
    for key, parameter in unet.named_parameters():
        if "lora_" in key:
            assert parameter.requires_grad
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.3 * noise / parameter[0].numel() ** 0.5
            found[key] = parameter
    arrays = {ours(key): value.detach().numpy() for key, value in found.items()}
    adapters, missing, extra = convert.from_torch(arrays, shapes(name))
    assert not missing and not extra

    call = {"encoder_hidden_states": torch.from_numpy(inputs["encoder_hidden_states"])}
    if "timestep_cond" in inputs:
        call["timestep_cond"] = torch.from_numpy(inputs["timestep_cond"])
    if "added_cond" in inputs:
        added = inputs["added_cond"].items()
        call["added_cond_kwargs"] = {key: torch.from_numpy(value) for key, value in added}
    sample = torch.from_numpy(inputs["sample"]).permute(0, 3, 1, 2)
    expected = unet(sample, torch.from_numpy(inputs["timesteps"]), **call).sample
    cotangent = np.random.default_rng(3).standard_normal(inputs["sample"].shape, np.float32)
    (expected * torch.from_numpy(cotangent).permute(0, 3, 1, 2)).sum().backward()

    apply, params = functional.apply_fn(UNet2DConditionModel, config), torch_params(name)

    def total(adapters):
        output = apply(lora.merged(params, adapters, ALPHA / RANK), **inputs)
        return jnp.sum(output * cotangent), output

    gradient = jax.grad(total, has_aux=True)
    gradients, output = jit(gradient, adapters)(adapters)
    plain = jit(lambda params: apply(params, **inputs), params)(params)
    assert relative_error(output, expected.detach().permute(0, 2, 3, 1).numpy()) <= 1e-5
    assert relative_error(output, plain) > 1e-2
    gradients = convert.to_torch(gradients)
    theirs = {ours(key): value.grad.numpy() for key, value in found.items()}
    assert gradients.keys() == theirs.keys()
    assert np.sqrt(sum(np.sum(g**2) for g in theirs.values())) > 1
    assert_same_gradients(gradients, theirs)


@pytest.mark.parametrize(("published", "millions"), [("SD 1.5", 67.25), ("SDXL", 196.75)])
def test_sizes_of_the_published_lcm_loras(published, millions):
    """latent-consistency/lcm-lora-sdv1-5 and lcm-lora-sdxl, of rank 64."""
    adapters = lora.abstract_adapters(abstract(UNETS[published]), 64)
    assert round(functional.count_params(adapters) / 1e6, 2) == millions


def test_before_the_first_step_nothing_is_changed():
    params = torch_params("sd21")
    adapters = lora.init(params, RANK)
    same = lora.merged(params, adapters, 1.5)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    downs = {k: a for k, a in functional.flatten(adapters).items() if lora.DOWN in k}
    for path, down in downs.items():
        bound = 1 / np.sqrt(np.prod(down.shape[:-1]))
        assert 0.7 * bound < np.abs(down).max() <= bound and abs(down.mean()) < 0.3 * bound, path
    other = functional.flatten(lora.init(params, RANK, seed=1))
    assert all(np.any(other[path] != down) for path, down in downs.items())


def test_alpha_is_a_factor_of_the_change_and_other_weights_stay():
    params = torch_params("sd21")
    ones = jax.tree.map(np.ones_like, lora.init(params, RANK, ["to_q", "conv_in"]))
    flat, changed = functional.flatten(params), functional.flatten(lora.merged(params, ones, 0.5))
    for path, leaf in changed.items():
        is_target = path.endswith(("to_q.kernel", "conv_in.kernel"))
        expected = flat[path] + 0.5 * RANK if is_target else flat[path]
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, err_msg=path)
    half = functional.flatten(lora.merged(params, lora.scaled(ones, 0.5)))
    jax.tree.map(np.testing.assert_array_equal, half, changed)


def test_a_change_in_bfloat16_weights_is_added_in_float32():
    params = {"to_q": {"kernel": np.full((2, 2), 256, jnp.bfloat16)}}
    pair = {"kernel": np.full((2, 1), 1, np.float32)}, {"kernel": np.full((1, 2), 1.5, np.float32)}
    adapters = {"to_q": dict(zip((lora.DOWN, lora.UP), pair, strict=True))}
    whole = lora.merged(params, adapters)["to_q"]["kernel"]  # there, 1.5 becomes 2 and 257 is 256
    assert whole.dtype == jnp.bfloat16 and (whole.astype(np.float32) == 258).all()


def test_the_nearest_lora_of_a_change_keeps_what_its_singular_values_say():
    """The change of three layers has rank 3, a bias changes besides."""
    before, rng = torch_params("sd21"), np.random.default_rng(0)
    flat, sizes = functional.flatten(before), (5.0, 2.0, 1.0)
    after, targets = dict(flat), ["attn1.to_q", "conv1"]
    for path, kernel in lora.layers_of(before, targets):
        rows, columns = np.prod(kernel.shape[:-1]), kernel.shape[-1]
        left, right = (np.linalg.qr(rng.standard_normal((n, 3)))[0] for n in (rows, columns))
        change = (left * sizes) @ right.T
        after[f"{path}.kernel"] = kernel + change.reshape(kernel.shape).astype(np.float32)
    count = len(list(lora.layers_of(before, targets)))
    after["conv_in.bias"] = flat["conv_in.bias"] + np.float32(0.5)
    rest = 0.25 * flat["conv_in.bias"].size
    after = functional.unflatten(after)
    for rank, squares in ((3, 30), (2, 29)):
        adapters, kept = lora.extracted(before, after, rank, targets)
        assert kept == pytest.approx(count * squares / (count * 30 + rest), rel=1e-4)
        assert lora.rank_of(adapters) == rank
        whole = functional.flatten(lora.merged(before, adapters))
        for path, kernel in lora.layers_of(after, targets):
            error = np.linalg.norm(whole[f"{path}.kernel"] - kernel)
            assert error == pytest.approx(30 - squares, abs=1e-4)
    assert lora.extracted(before, before, 2, targets)[1] == 1.0


@pytest.mark.parametrize(
    ("rank", "targets", "expected"),
    [
        (33, ["to_q"], r"rank = 33, expected at most 32, the largest that down_blocks\.0\."),
        (4, ["to_q", "to_w"], "targets = 'to_w', expected the end of a layer's path"),
        (4, ["o_q"], "targets = 'o_q'"),
        (4, ["norm1"], "targets = 'norm1'"),
    ],
)
def test_what_does_not_fit_is_refused(rank, targets, expected):
    with pytest.raises(OptionError, match=expected):
        shapes("sd15", rank, targets)
