"""UNets of torch diffusers: weights, outputs and gradients to compare with."""

import dataclasses
import functools

import jax
import numpy as np

from slam_jax.formats import convert
from slam_jax.models import functional
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.parallel import runtime

TINY = dict(block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8)


TWO_LEVELS = dict(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)


CONFIGS = {
    "sd15": UNetConfig(
        **TINY | TWO_LEVELS | dict(layers_per_block=2),
        cross_attention_dim=24,
        attention_head_dim=2,
        time_cond_proj_dim=16,
    ),
    "sd21": UNetConfig(
        **TINY | TWO_LEVELS,
        cross_attention_dim=40,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        upcast_attention=True,
    ),
    "sdxl": UNetConfig(
        **TINY,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=48,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
    ),
    "digits": UNetConfig(
        **TINY | TWO_LEVELS,
        sample_size=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        freq_shift=1,
        flip_sin_to_cos=False,
    ),
}


LATENT_SIZES = {"sd15": (8, 8), "sd21": (7, 5), "sdxl": (8, 6), "digits": (4, 4)}


CONTEXT_LENGTHS = {"sd15": 5, "sd21": 5, "sdxl": 5, "digits": 2}


def jit(f, *args):
    """`f` compiled for `args` with little optimisation: three times sooner, and run but once."""
    options: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
    if runtime.jaxlib_knows("xla_cpu_use_fusion_emitters"):
        options["xla_cpu_use_fusion_emitters"] = False
    return jax.jit(f).lower(*args).compile(compiler_options=options)


def relative_error(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    return np.abs(actual - expected).max() / np.abs(expected).max()


def example_inputs(name):
    """Inputs of the UNet as numpy arrays, batch 2."""
    config, rng = CONFIGS[name], np.random.default_rng(1)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    inputs = {
        "sample": normal(2, *LATENT_SIZES[name], 4),
        "timesteps": np.array([3.7, 812.25], np.float32),
        "encoder_hidden_states": normal(2, CONTEXT_LENGTHS[name], config.cross_attention_dim),
    }
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = normal(2, config.time_cond_proj_dim)
    if config.addition_embed_type is not None:
        time_ids = rng.integers(0, 1024, (2, 6)).astype(np.float32)
        inputs["added_cond"] = {"text_embeds": normal(2, 20), "time_ids": time_ids}
    return inputs


@dataclasses.dataclass(frozen=True)
class Reference:
    """What torch says: weights, output, and gradients of sum(output * cotangent)."""

    state_dict: dict
    output: np.ndarray
    cotangent: np.ndarray
    param_grads: dict
    sample_grad: np.ndarray


@functools.cache
def reference(name):
    import diffusers
    import torch

    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel.from_config(CONFIGS[name].to_dict())
    with torch.no_grad():  # the defaults, one and zero, would hide mistakes
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                is_scale = "norm" in parameter_name and parameter_name.endswith("weight")
                parameter.copy_(float(is_scale) + 0.3 * torch.randn_like(parameter))
    inputs = jax.tree.map(torch.from_numpy, example_inputs(name))
    sample = inputs["sample"].permute(0, 3, 1, 2).requires_grad_()
    output = model(
        sample,
        inputs["timesteps"],
        inputs["encoder_hidden_states"],
        timestep_cond=inputs.get("timestep_cond"),
        added_cond_kwargs=inputs.get("added_cond"),
    ).sample
    cotangent = torch.randn_like(output)
    (output * cotangent).sum().backward()

    def nhwc(x):
        return x.detach().permute(0, 2, 3, 1).numpy()

    return Reference(
        state_dict={key: value.numpy() for key, value in model.state_dict().items()},
        output=nhwc(output),
        cotangent=nhwc(cotangent),
        param_grads={key: value.grad.numpy() for key, value in model.named_parameters()},
        sample_grad=nhwc(sample.grad),
    )


def torch_params(name):
    abstract = functional.abstract_params(UNet2DConditionModel, CONFIGS[name])
    params, missing, extra = convert.from_torch(reference(name).state_dict, abstract)
    assert not missing and not extra
    return params
