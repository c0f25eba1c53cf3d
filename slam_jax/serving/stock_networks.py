"""Denoisers of diffusers, alone and with LoRAs by peft, to compare with: called where torch is."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from slam_jax.formats.lora_header import CONFIG_FILE
from slam_jax.serving.stock_pipeline import quiet


def load_network(kind: str, folder: Path, variant: str) -> tuple[Any, list[str]]:
    """A network of diffusers from a folder with its config.json and weights, in float32; and the
    keys that its file lacks or has too many.

    Args:
      kind: its class.
      folder: where.
      variant: such as "fp16", of the weight files.
    """
    import diffusers

    with quiet():
        options = dict(variant=variant or None, use_safetensors=True, output_loading_info=True)
        loaded: Any = getattr(diffusers, kind).from_pretrained(folder, **options)
    network, found = loaded
    return network.float().eval(), [*found["missing_keys"], *found["unexpected_keys"]]


def add_loras(network: Any, loras: Sequence[tuple[Path, float]]) -> None:
    """Adds LoRAs to diffusers' UNet or transformer by peft, as its pipelines' `load_lora_weights`
    and `set_adapters` do; what they have for text encoders is left out.

    Args:
      network: from `load_network`.
      loras: files, and how much of each.
    """
    import diffusers

    is_unet = isinstance(network, diffusers.UNet2DConditionModel)  # pyright: ignore
    load = _load_into_unet if is_unet else _load_into_transformer
    weights = {f"lora_{index}": factor for index, (_, factor) in enumerate(loras)}
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a second LoRA on the same layers
        for name, (path, _) in zip(weights, loras, strict=True):
            load(network, path, name)
        if names := [name for name in weights if name in getattr(network, "peft_config", {})]:
            network.set_adapters(names, [weights[name] for name in names])


def _load_into_unet(unet: Any, path: Path, name: str) -> None:
    from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    options: Any = dict(weight_name=path.name, unet_config=unet.config)
    read: Any = StableDiffusionPipeline.lora_state_dict
    state, alphas, about = read(path.parent, **options, return_lora_metadata=True)
    if not any(key.startswith(("unet.", "text_encoder")) for key in state):
        state, about = _of_peft(path, state)
    into: Any = dict(adapter_name=name, metadata=about)
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet, **into)


def _load_into_transformer(transformer: Any, path: Path, name: str) -> None:
    from diffusers import StableDiffusion3Pipeline  # pyright: ignore[reportPrivateImportUsage]

    read: Any = StableDiffusion3Pipeline.lora_state_dict
    state, about = read(path.parent, weight_name=path.name, return_lora_metadata=True)
    into: Any = dict(adapter_name=name, metadata=about)
    StableDiffusion3Pipeline.load_lora_into_transformer(state, transformer, **into)


def _of_peft(path: Path, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A file of peft, which diffusers' pipelines do not read, as one of theirs: its arrays and what
    they have in a header."""
    from peft import LoraConfig

    state = {f"unet.{key.removeprefix('base_model.model.')}": x for key, x in state.items()}
    if not path.with_name(CONFIG_FILE).exists():
        return state, None
    config: Any = LoraConfig.from_pretrained(str(path.parent))
    return state, {f"unet.{key}": value for key, value in config.to_dict().items()}


def unet_output(unet: Any, inputs: dict[str, Any]) -> Float[np.ndarray, "B H W C"]:
    """What diffusers' UNet computes.

    Args:
      unet: from `load_network`.
      inputs: as for our UNet, numpy: sample [B, H, W, C], timesteps [B], encoder_hidden_states,
        timestep_cond or None, added_cond or None.
    """
    added = inputs["added_cond"]
    return _output(
        unet,
        inputs,
        timestep=inputs["timesteps"],
        timestep_cond=inputs["timestep_cond"],
        added_cond_kwargs=added,
    )


def transformer_output(transformer: Any, inputs: dict[str, Any]) -> Float[np.ndarray, "B H W C"]:
    """What diffusers' transformer of Stable Diffusion 3 computes.

    Args:
      transformer: from `load_network`.
      inputs: as for ours, numpy: sample [B, H, W, C], timesteps [B], encoder_hidden_states,
        pooled_projections.
    """
    pooled = inputs["pooled_projections"]
    return _output(transformer, inputs, timestep=inputs["timesteps"], pooled_projections=pooled)


def _output(network: Any, inputs: dict[str, Any], **more: Any) -> Float[np.ndarray, "B H W C"]:
    import torch

    def as_torch(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: as_torch(array) for name, array in value.items()}
        return None if value is None else torch.from_numpy(np.array(value))

    sample = as_torch(np.moveaxis(inputs["sample"], -1, 1))
    states = as_torch(inputs["encoder_hidden_states"])
    with torch.inference_mode():
        output = network(sample, encoder_hidden_states=states, **as_torch(more)).sample
    return np.moveaxis(output.numpy(), 1, -1)
