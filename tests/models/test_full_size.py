"""The UNet of Stable Diffusion 1.5 in its real size, with random weights, against torch."""

import jax
import numpy as np
import pytest
from helpers import assert_close, jit

from slam_jax.formats import convert
from slam_jax.models import functional
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig


@pytest.mark.nightly
def test_the_whole_unet_of_sd15_matches_diffusers():
    import diffusers
    import torch

    config = UNetConfig(cross_attention_dim=768, time_cond_proj_dim=256)
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel.from_config(config.to_dict())
    rng = np.random.default_rng(0)
    x, cond = rng.standard_normal((1, 4, 16, 16)), rng.standard_normal((1, 256))
    t, context = np.array([412.5]), rng.standard_normal((1, 77, 768))
    x, cond, t, context = (a.astype(np.float32) for a in (x, cond, t, context))
    with torch.no_grad():
        inputs = [torch.from_numpy(a) for a in (x, t, context, cond)]
        expected = model(*inputs[:3], timestep_cond=inputs[3]).sample.numpy()
    abstract = functional.abstract_params(UNet2DConditionModel, config)
    state_dict = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    params, missing, extra = convert.from_torch(state_dict, abstract, jax.device_put)
    del model, state_dict
    assert not missing and not extra
    assert round(functional.count_params(params) / 1e6, 2) == 859.52 + 0.08  # with cond_proj
    apply = functional.apply_fn(UNet2DConditionModel, config)
    actual = jit(apply)(params, x.transpose(0, 2, 3, 1), t, context, timestep_cond=cond)
    assert_close(actual, expected.transpose(0, 2, 3, 1), 1e-4)
