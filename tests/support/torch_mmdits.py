"""Transformers of SD 3 and 3.5 of torch diffusers: weights, outputs, gradients to compare with."""

import dataclasses
import functools

import diffusers
import numpy as np
import torch

from slam_jax.formats import convert
from slam_jax.models import functional
from slam_jax.models.mmdit import SD3Config, SD3Transformer2DModel

TINY = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    attention_head_dim=8,
    num_attention_heads=2,
    caption_projection_dim=16,
    joint_attention_dim=12,
    pooled_projection_dim=20,
    pos_embed_max_size=6,
)
CONFIGS = {
    "sd3": SD3Config(**TINY, num_layers=2),
    "sd35_medium": SD3Config(**TINY, num_layers=3, dual_attention_layers=(0,), qk_norm="rms_norm"),
}
LATENT_SIZES = {"sd3": (8, 6), "sd35_medium": (7, 10)}

# What is published with the weights, as in the files.
SD3_MEDIUM = {
    "_class_name": "SD3Transformer2DModel",
    "_diffusers_version": "0.29.0.dev0",
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
SD35_MEDIUM = SD3_MEDIUM | {
    "dual_attention_layers": list(range(13)),
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
}


def example_inputs(name):
    """Inputs of the transformer as numpy arrays, batch 2."""
    config, rng = CONFIGS[name], np.random.default_rng(1)
    shapes = {
        "sample": (2, *LATENT_SIZES[name], config.in_channels),
        "encoder_hidden_states": (2, 5, config.joint_attention_dim),
        "pooled_projections": (2, config.pooled_projection_dim),
    }
    inputs = {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
    return inputs | {"timesteps": np.array([3.7, 812.25], np.float32)}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What torch says: weights, output, and gradients of sum(output * cotangent)."""

    state_dict: dict
    output: np.ndarray
    cotangent: np.ndarray
    param_grads: dict
    input_grads: dict


def seeded(model_class, config):
    """A torch model of random weights; the defaults, one and zero, would hide mistakes."""
    torch.manual_seed(0)
    model = model_class.from_config(config.to_dict())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                is_scale = "norm" in name and name.endswith("weight")
                parameter.copy_(float(is_scale) + 0.3 * torch.randn_like(parameter))
    return model


@functools.cache
def reference(name):
    model = seeded(diffusers.SD3Transformer2DModel, CONFIGS[name])
    inputs = {key: torch.from_numpy(x) for key, x in example_inputs(name).items()}
    timestep = inputs.pop("timesteps")
    leaves = {key: x.requires_grad_() for key, x in inputs.items()}
    output = model(
        leaves["sample"].permute(0, 3, 1, 2),
        leaves["encoder_hidden_states"],
        leaves["pooled_projections"],
        timestep,
    ).sample.permute(0, 2, 3, 1)
    cotangent = torch.randn_like(output)
    (output * cotangent).sum().backward()
    return Reference(
        state_dict={key: value.numpy() for key, value in model.state_dict().items()},
        output=output.detach().numpy(),
        cotangent=cotangent.numpy(),
        param_grads={key: value.grad.numpy() for key, value in model.named_parameters()},
        input_grads={key: x.grad.numpy() for key, x in leaves.items()},
    )


def torch_params(name):
    abstract = functional.abstract_params(SD3Transformer2DModel, CONFIGS[name])
    params, missing, extra = convert.from_torch(reference(name).state_dict, abstract)
    assert not missing and not extra
    return params
