"""A network in a folder: `config.json` (its family and configuration, the noise schedule's, what
made it) and `flax_params.safetensors`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json, write_json
from slam_jax.formats import safetensors

PARAMS_FILE, CONFIG_FILE = "flax_params.safetensors", "config.json"
AGAIN = "export the model again"


@dataclass(frozen=True)
class SavedModel:
    """What a model folder holds.

    Attributes:
      family: the name of its family.
      network: configuration of the denoiser, JSON-serialisable.
      params: its weights, nested dict of float32 arrays; empty where its LoRA alone is exported.
      scheduler: the noise schedule's configuration.
      info: how it was made.
      lora: a LoRA that makes this model of its teacher, with alpha = rank, which exports beside it;
        None: there is none.
      lora_keys: the layout of its file, one of `lora_file.KEYS`.
    """

    family: str
    network: dict[str, Any]
    params: dict[str, Any]
    scheduler: dict[str, Any]
    info: dict[str, Any]
    lora: dict[str, Any] | None = None
    lora_keys: str = "kohya"


def save_model(folder: Path, model: SavedModel) -> None:
    """Writes a model folder; the config comes last, so that a folder with a config is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save_params(folder / PARAMS_FILE, model.params)
    names = ("family", "network", "scheduler", "info")
    write_json(folder / CONFIG_FILE, {name: getattr(model, name) for name in names})


def family_of(folder: Path) -> str:
    """The family that a model folder names; "" where it is none, or cannot be read."""
    try:
        return str(read_json(folder / CONFIG_FILE, AGAIN).get("family", ""))
    except InputError:
        return ""


def load_model(folder: str | os.PathLike) -> SavedModel:
    """Reads a model folder, or an exported diffusers folder, whose flax/ is one.

    Whether the weights are those of the configuration is for the family to say.

    Raises:
      InputError: no folder, or an unreadable file; names it.
    """
    folder = Path(folder)
    if (folder / "flax").is_dir():
        folder = folder / "flax"
    path = folder / CONFIG_FILE
    content = read_json(path, f"a model folder has {CONFIG_FILE} and {PARAMS_FILE}; {AGAIN}")
    kinds = {"family": str, "network": dict, "scheduler": dict, "info": dict}
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind):
            raise InputError(
                f"{path}: {key} is {content.get(key)!r}, expected a {kind.__name__}; {AGAIN}"
            )
    params = safetensors.load_params(folder / PARAMS_FILE)
    return SavedModel(params=params, **{key: content[key] for key in kinds})
