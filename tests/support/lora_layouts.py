"""Writes a LoRA in each layout: by diffusers and peft, or by hand where no library writes it
any more. `states` is part -> a state dict as peft names it, `configs` part -> peft's.
"""

import re

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file

from slam_jax.formats.lora_names import stability_names

RANK, ALPHA = 3, 5.0


def of_diffusers(states, configs, path):
    """As its pipelines write it today: alpha in the header."""
    about = {}
    for part, config in configs.items():
        facts = {**config.to_dict(), "target_modules": sorted(config.target_modules)}
        about[f"{part}_lora_adapter_metadata"] = facts
    layers = {"unet_lora_layers": states["unet"], **about}
    layers |= {f"{part}_lora_layers": states[part] for part in states if part != "unet"}
    pipeline = StableDiffusionXLPipeline if "text_encoder_2" in states else StableDiffusionPipeline
    pipeline.save_lora_weights(path.parent, weight_name=path.name, **layers)


def without_alpha(states, configs, path):
    flat = {f"{part}.{key}": x for part, state in states.items() for key, x in state.items()}
    save_file(flat, path)


def of_kohya(states, configs, path):
    """sd-scripts: alpha beside each pair; lora_te1 and lora_te2 where there are two."""
    flat = {}
    for part, state in states.items():
        state = {key.removeprefix("text_model."): x for key, x in state.items()}
        inside = "" if part == "unet" else "text_model."
        flat |= convert_state_dict_to_kohya({f"{part}.{inside}{k}": x for k, x in state.items()})
    if "text_encoder_2" not in states:
        flat = {key.replace("lora_te1_", "lora_te_"): x for key, x in flat.items()}
    save_file(
        {k: torch.tensor(ALPHA) if k.endswith(".alpha") else x for k, x in flat.items()}, path
    )


def of_stability(states, configs, path, layers_per_block=1):
    """sd-scripts for SDXL: StabilityAI's names of the UNet's layers."""
    layers = {key.rsplit(".lora_", 1)[0] for key in states["unet"]}
    names = {path: name for name, path in stability_names(layers, layers_per_block).items()}
    assert names.keys() == layers
    flat = {}
    for key, value in states["unet"].items():
        layer, side = key.rsplit(".lora_", 1)
        name = "lora_unet_" + names[layer].replace(".", "_")
        flat[f"{name}.lora_{'down' if side[0] == 'A' else 'up'}.weight"] = value
        flat[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(flat, path)


def of_2023(states, configs, path):
    """Attention alone, of the UNet, as diffusers' first training scripts wrote it."""
    flat = {}
    for key, value in states["unet"].items():
        if match := re.fullmatch(r"(.*attn\d)\.(to_\w+?)(\.0)?\.lora_([AB])\.weight", key):
            side = "down" if match[4] == "A" else "up"
            flat[f"unet.{match[1]}.processor.{match[2]}_lora.{side}.weight"] = value
    save_file(flat, path)


def of_peft(states, configs, path):
    """peft's folder, of a UNet alone."""
    flat = {f"base_model.model.{key}": value for key, value in states["unet"].items()}
    save_file(flat, path.with_name("adapter_model.safetensors"))
    configs["unet"].save_pretrained(path.parent)
