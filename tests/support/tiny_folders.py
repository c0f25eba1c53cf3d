"""Reading the components of tiny model folders, here and in torch; and changing the folders."""

import json

import diffusers
import ml_dtypes
import numpy as np
import torch
import transformers

from slam_jax.formats import convert
from slam_jax.formats import diffusers_folder as folder
from slam_jax.formats import safetensors as weights
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.models.vae import AutoencoderKL, VAEConfig

MODULES = {
    "unet": (UNet2DConditionModel, UNetConfig),
    "vae": (AutoencoderKL, VAEConfig),
    "text_encoder": (CLIPTextModel, CLIPTextConfig),
    "text_encoder_2": (CLIPTextModel, CLIPTextConfig),
}
TORCH_MODULES = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
}
VAE = "vae/diffusion_pytorch_model.safetensors"


def read(path, component, variant="", **options):
    model = folder.resolve(str(path), variant=variant)
    module_class, config_class = MODULES[component]
    config = config_class.from_dict(folder.read_config(model, component))
    return folder.read_params(model, component, module_class, config, **options)


def load_in_torch(path, component):
    """What torch loads: the module, and its state dict with the keys of the published files."""
    module = TORCH_MODULES[component].from_pretrained(path / component)
    state = {}
    for key, tensor in module.state_dict().items():
        bare = "text" in component and not key.startswith("text_")
        state[f"text_model.{key}" if bare else key] = tensor
    return module, state


def assert_params_are(params, state):
    """Equal keys and bits."""
    actual = convert.to_torch(params)
    assert actual.keys() == state.keys()
    for key, tensor in state.items():
        array = actual[key]
        if array.dtype == ml_dtypes.bfloat16:
            assert tensor.dtype == torch.bfloat16
            array, tensor = array.astype(np.float32), tensor.float()
        np.testing.assert_array_equal(array, tensor.numpy(), err_msg=key, strict=True)


def rename(where, old, new):
    (where / old).rename(where / new)


def shard(path):
    """Two shards and their index, in place of the VAE's one file; returns the three."""
    file = path / VAE
    arrays = weights.load_arrays(file)
    file.unlink()
    names = sorted(arrays)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = [file.with_name(f"{file.stem}-0000{i + 1}-of-00002.safetensors") for i in range(2)]
    weight_map = {}
    for part, keys in zip(files, halves, strict=True):
        weights.save_arrays(part, {key: arrays[key] for key in keys})
        weight_map |= dict.fromkeys(keys, part.name)
    index = file.with_name(f"{file.name}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return *files, index
