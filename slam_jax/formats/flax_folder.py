"""A network in a folder: `config.json` (UNet config, scheduler config, what made it) and
`flax_params.safetensors`."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.base.files import write_whole
from slam_jax.formats import safetensors as weights
from slam_jax.models import functional
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig

PARAMS_FILE, CONFIG_FILE = "flax_params.safetensors", "config.json"


@dataclass(frozen=True)
class SavedModel:
    """What a model folder holds.

    Attributes:
      unet: configuration of the network.
      params: its weights, nested dict of float32 arrays.
      scheduler: the noise schedule's configuration.
      info: how it was made.
    """

    unet: UNetConfig
    params: dict[str, Any]
    scheduler: dict[str, Any]
    info: dict[str, Any]


def save_model(folder: Path, model: SavedModel) -> None:
    """Writes a model folder; the config comes last, so that a folder with a config is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    weights.save_params(folder / PARAMS_FILE, model.params)
    content = {"unet": model.unet.to_dict(), "scheduler": model.scheduler, "info": model.info}
    write_whole(folder / CONFIG_FILE, json.dumps(content, indent=2))


def load_model(folder: str | os.PathLike) -> SavedModel:
    """Reads a model folder, or an exported diffusers folder, whose flax/ is one.

    Raises:
      InputError: no folder, an unreadable file, or weights that are not those of the config; names
        the file.
    """
    folder = Path(folder)
    if (folder / "flax").is_dir():
        folder = folder / "flax"
    config_file, params_file = folder / CONFIG_FILE, folder / PARAMS_FILE
    again = "export the model again"
    try:
        content = json.loads(config_file.read_text())
        unet, scheduler = UNetConfig.from_dict(content["unet"]), content["scheduler"]
        info, params = content["info"], weights.load_params(params_file)
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read; a model folder has {CONFIG_FILE} and {PARAMS_FILE}"
        ) from error
    except KeyError as error:
        raise InputError(f"{config_file}: the key {error} is missing; {again}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder}: {error}; {again}") from error
    expected = functional.abstract_params(UNet2DConditionModel, unet)
    if difference := functional.first_difference(expected, params):
        raise InputError(f"{params_file}: {difference}; the weights are not those of {CONFIG_FILE}")
    return SavedModel(unet, params, scheduler, info)
