"""The one builder: a teacher's UNet and everything frozen around it, and students derived from it.

A model folder holds `config.json` (UNet config, scheduler config, and what made it) and
`flax_params.safetensors`.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slam_jax.data import digits
from slam_jax.errors import InputError
from slam_jax.files import write_whole
from slam_jax.loss import Student
from slam_jax.models import functional, weights
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.schedule import NoiseSchedule, gamma_embedding
from slam_jax.solver import Denoiser

GAMMA_EMBEDDING_DIM = 256
SD_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
PARAMS_FILE, CONFIG_FILE = "flax_params.safetensors", "config.json"


@dataclass(frozen=True)
class Pipeline:
    """What training and sampling need beside the UNet's weights.

    Attributes:
      unet: the teacher's configuration.
      scheduler: contents of a diffusers scheduler_config.json.
      schedule: built from it.
      latent_shape: (H, W, C).
      null_tokens: token ids of the empty prompt, [L].
      embed_tokens: token ids [B, L] -> context [B, L, D].
      decode: latents [B, H, W, C] -> images in [-1, 1].
    """

    unet: UNetConfig
    scheduler: dict[str, Any]
    schedule: NoiseSchedule
    latent_shape: tuple[int, int, int]
    null_tokens: np.ndarray
    embed_tokens: Callable[[Array], Array]
    decode: Callable[[Array], Array]

    def contexts(self, tokens: Array, w: float) -> tuple[Array, Array | None]:
        """Context of the tokens [B, L] and, where guidance w needs it, of as many empty prompts."""
        if w == 0:
            return self.embed_tokens(tokens), None
        null = jnp.broadcast_to(jnp.asarray(self.null_tokens), tokens.shape)
        return self.embed_tokens(tokens), self.embed_tokens(null)


def digits_pipeline(unet: UNetConfig, prediction_type: str) -> Pipeline:
    """The pipeline of the handwritten digits, with Stable Diffusion's noise schedule.

    Raises:
      ValueError: the UNet's channels or context width are not those of the digits, or no such
        UNet can be built.
    """
    latent_channels = digits.LATENT_SHAPE[-1]
    wanted = {
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "cross_attention_dim": digits.VOCABULARY,
    }
    for name, value in wanted.items():
        if getattr(unet, name) != value:
            raise ValueError(f"unet.{name} = {getattr(unet, name)}, the digits need {value}")
    try:
        params = functional.abstract_params(UNet2DConditionModel, unet)
        x, t = jnp.zeros((1, *digits.LATENT_SHAPE)), jnp.zeros(1)
        context = jnp.zeros((1, 2, digits.VOCABULARY))
        jax.eval_shape(lambda p: teacher_network(unet)(p)(x, t, context), params)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"unet: {' '.join(str(error).split())}") from error
    scheduler = {**SD_SCHEDULER, "prediction_type": prediction_type}
    return Pipeline(
        unet=unet,
        scheduler=scheduler,
        schedule=NoiseSchedule.from_config(scheduler),
        latent_shape=digits.LATENT_SHAPE,
        null_tokens=digits.tokenize(np.array([digits.NULL_LABEL]))[0],
        embed_tokens=digits.embed_tokens,
        decode=lambda latents: jnp.clip(digits.decode_latents(latents), -1, 1),
    )


def teacher_network(config: UNetConfig) -> Callable[[Any], Denoiser]:
    """params -> the teacher as a function of (x, t, context)."""
    apply = functional.apply_fn(UNet2DConditionModel, config)
    return lambda params: lambda x, t, context: apply(params, x, t.astype(jnp.float32), context)


def student_network(config: UNetConfig) -> Callable[[Any], Student]:
    """params -> the student as a function of (x, t, context, gamma)."""
    apply = functional.apply_fn(UNet2DConditionModel, config)

    def bind(params):
        def student(x, t, context, gamma):
            dim = config.time_cond_proj_dim
            condition = None if dim is None else gamma_embedding(gamma, dim)
            return apply(params, x, t.astype(jnp.float32), context, timestep_cond=condition)

        return student

    return bind


def student_config(teacher: UNetConfig, conditioning: str) -> UNetConfig:
    """The teacher's config, with a gamma embedding where `conditioning` ("embedding", "snr",
    "both") asks for one."""
    return replace(
        teacher, time_cond_proj_dim=None if conditioning == "snr" else GAMMA_EMBEDDING_DIM
    )


def student_params(teacher_params: dict[str, Any], config: UNetConfig) -> dict[str, Any]:
    """The student at step 0: the teacher's weights, and zeros for a gamma projection."""
    params = jax.tree.map(jnp.array, teacher_params)
    if config.time_cond_proj_dim is not None:
        shape = (config.time_cond_proj_dim, config.block_out_channels[0])
        params["time_embedding"]["cond_proj"] = {"kernel": jnp.zeros(shape)}
    return params


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
    """Reads a model folder.

    Raises:
      InputError: no folder, an unreadable file, or weights that are not those of the config; names
        the file.
    """
    config_file, params_file = Path(folder) / CONFIG_FILE, Path(folder) / PARAMS_FILE
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
