"""The one builder: from a folder or a hub repository to a pipeline with its weights.

a teacher                          a diffusers folder, with model_index.json
a Stable Diffusion student         the same, with an LCMScheduler; ours have a slam.json too
a digits student                   config.json and flax_params.safetensors
the workdir of a finished run      has the student in export/
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from slam_jax.base.errors import InputError
from slam_jax.families.digits_pipeline import digits_pipeline
from slam_jax.families.family import Frozen, Params, Pipeline
from slam_jax.families.sd_pipeline import TEXT_ENCODERS, StableDiffusionPipeline
from slam_jax.formats.diffusers_folder import (
    Folder,
    read_config,
    read_model_index,
    read_params,
    read_tokenizer,
    resolve,
)
from slam_jax.formats.flax_folder import PARAMS_FILE, load_model
from slam_jax.formats.tokenizer import Tokenizer
from slam_jax.method.schedule import NoiseSchedule
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.models.vae import AutoencoderKL, VAEConfig

RECORD_FILE = "slam.json"  # how a student was made
TIME_IDS = 6
T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """A student or a teacher with everything that drawing needs.

    Attributes:
      pipeline: what surrounds the UNet, and the UNet's configuration.
      frozen: the weights around the UNet.
      params: the UNet's weights.
      is_student: draws in few steps, without guidance.
      num_ddim_timesteps: M of a student's distillation.
      info: how a student was made, empty for others.
      pipeline_class: of model_index.json, empty for digits.
    """

    pipeline: Pipeline
    frozen: Frozen
    params: Params
    is_student: bool
    num_ddim_timesteps: int
    info: dict[str, Any]
    pipeline_class: str = ""


def load(
    path: str,
    revision: str = "",
    variant: str = "",
    height: int | None = None,
    width: int | None = None,
    dtype: str = "float32",
) -> Model:
    """Loads any of the forms above.

    Args:
      path: folder, workdir or hub repository.
      revision: commit, tag or branch of a repository.
      variant: such as "fp16", of weight files.
      height, width: of the pictures, in pixels; None: the size that the model was trained on.
      dtype: of the UNet's and the text encoders' weights; the VAE's are float32.

    Raises:
      InputError: it cannot be found or read, or lacks something; names the file.
    """
    local = Path(path)
    if (local / "export").is_dir():
        local = local / "export"
    elif (local / "checkpoints").is_dir():
        raise InputError(
            f"{path}: this run has not finished; go on with it, or use slam-jax export"
        )
    if (local / PARAMS_FILE).is_file():
        for name, given in (("revision", revision), ("variant", variant)):
            if given:
                raise InputError(f"{path}: a digits student has no {name} {given!r}; leave it out")
        return _load_digits(local)
    folder = resolve(str(local) if local.is_dir() else path, revision, variant)
    pipeline = read_pipeline(folder, height, width)
    info = {}
    if (record := folder.path / RECORD_FILE).is_file():
        try:
            info = json.loads(record.read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"{record}: damaged ({error}); export the model again") from error
    return Model(
        pipeline=pipeline,
        frozen=read_surroundings(folder, pipeline, dtype, "float32"),
        params=read_unet(folder, pipeline.unet, dtype),
        is_student=is_student(pipeline),
        num_ddim_timesteps=_original_steps(folder, pipeline),
        info=info,
        pipeline_class=read_model_index(folder)["_class_name"],
    )


def is_student(pipeline: Pipeline) -> bool:
    """Whether the UNet draws in few steps: it is told gamma, or comes with LCM's scheduler."""
    told_gamma = pipeline.unet.time_cond_proj_dim is not None
    return told_gamma or pipeline.scheduler.get("_class_name") == "LCMScheduler"


def _original_steps(folder: Folder, pipeline: Pipeline) -> int:
    """M of a student's distillation, as its scheduler says."""
    steps = pipeline.scheduler.get("original_inference_steps", 50)
    count = pipeline.schedule.num_train_timesteps
    if type(steps) is not int or steps < 1 or count % steps:
        raise InputError(
            f"{folder.path}/scheduler/scheduler_config.json: original_inference_steps = {steps!r}, "
            f"expected a divisor of the {count} training timesteps"
        )
    return steps


def _load_digits(folder: Path) -> Model:
    student = load_model(folder)
    return Model(
        pipeline=digits_pipeline(student.unet, student.scheduler["prediction_type"]),
        frozen={},
        params=student.params,
        is_student=True,
        num_ddim_timesteps=student.info["method"]["num_ddim_timesteps"],
        info=student.info,
    )


def read_pipeline(
    folder: Folder, height: int | None = None, width: int | None = None
) -> StableDiffusionPipeline:
    """Everything of a diffusers folder but the weights.

    Args:
      folder: the model.
      height, width: of the pictures, in pixels; None: the size that the model was trained on.

    Raises:
      InputError: a part is missing, not supported, or does not fit the others; or the size is not
        a multiple of the VAE's patches.
    """
    index = read_model_index(folder)
    unet = _parsed(folder, "unet", UNetConfig.from_dict, UNet2DConditionModel)
    vae = _parsed(folder, "vae", VAEConfig.from_dict, AutoencoderKL)
    names = [name for name in TEXT_ENCODERS if name in index]
    text_encoders = tuple(
        _parsed(folder, name, CLIPTextConfig.from_dict, CLIPTextModel) for name in names
    )
    _check_fit(folder, unet, vae, text_encoders)
    tokenizers = tuple(
        read_tokenizer(folder, name.replace("text_encoder", "tokenizer")) for name in names
    )
    for name, tokenizer, encoder in zip(names, tokenizers, text_encoders, strict=True):
        _check_tokenizer(folder.path / name, tokenizer, encoder)
    sides = []
    for name, side in (("height", height), ("width", width)):
        side = (unet.sample_size or 64) * vae.downscale if side is None else side
        if side < vae.downscale or side % vae.downscale:
            raise InputError(
                f"{name} = {side}: expected a positive multiple of {vae.downscale} pixels"
            )
        sides.append(side // vae.downscale)
    return StableDiffusionPipeline(
        unet=unet,
        scheduler=read_config(folder, "scheduler"),
        schedule=_parsed(folder, "scheduler", _schedule),
        latent_shape=(*sides, vae.latent_channels),
        vae=vae,
        text_encoders=text_encoders,
        tokenizers=tokenizers,
        zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", False)),
    )


def _parsed(
    folder: Folder,
    component: str,
    parse: Callable[[dict[str, Any]], T],
    module_class: type | None = None,
) -> T:
    """A component's configuration, from which its module can be built where it has one.

    Raises:
      InputError: it cannot be read, or asks for something that is not supported or makes no sense.
    """
    content = read_config(folder, component)
    try:
        config = parse(content)
        if module_class is not None:
            functional.abstract_params(module_class, config)
    # Whatever numbers that make no sense lead to.
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        why = " ".join(str(error).split())[:300]
        raise InputError(f"{folder.path / component}: its configuration: {why}") from error
    return config


def _schedule(config: dict[str, Any]) -> NoiseSchedule:
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        raise ValueError(
            f"{config.get('_class_name')} with no beta_schedule; a DDPM noise schedule is expected"
        )
    return NoiseSchedule.from_config(config)


def _check_tokenizer(where: Path, tokenizer: Tokenizer, encoder: CLIPTextConfig) -> None:
    """The text encoder takes whatever its tokenizer gives.

    Raises:
      InputError: it does not.
    """
    for name, taken, given in (
        ("max_position_embeddings", encoder.max_position_embeddings, tokenizer.length),
        ("vocab_size", encoder.vocab_size, tokenizer.vocabulary),
    ):
        if taken < given:
            raise InputError(
                f"{where}/config.json: {name} = {taken}, but its tokenizer needs {given}; they do "
                "not belong together"
            )


def _check_fit(
    folder: Folder, unet: UNetConfig, vae: VAEConfig, text_encoders: tuple[CLIPTextConfig, ...]
) -> None:
    """The parts' widths fit each other.

    Raises:
      InputError: they do not.
    """
    config = f"{folder.path}/unet/config.json"

    def require(name, expected, reason):
        if getattr(unet, name) != expected:
            raise InputError(
                f"{config}: {name} = {getattr(unet, name)}, expected {expected}, {reason}"
            )

    require("in_channels", vae.latent_channels, "the latent_channels of vae/config.json")
    require("out_channels", vae.latent_channels, "the latent_channels of vae/config.json")
    width = sum(encoder.hidden_size for encoder in text_encoders)
    require("cross_attention_dim", width, "the hidden_size of the text encoders, added up")
    if len(text_encoders) == 1:
        require("addition_embed_type", None, "as there is one text encoder")
        return
    require("addition_embed_type", "text_time", "as there are two text encoders")
    inputs = text_encoders[1].projection_dim + TIME_IDS * unet.addition_time_embed_dim
    require("projection_class_embeddings_input_dim", inputs, "for pooled text and time_ids")


def read_unet(folder: Folder, unet: UNetConfig, dtype: str) -> Params:
    """The UNet's weights, numpy arrays.

    Raises:
      InputError: a missing, damaged or foreign file.
    """
    return read_params(folder, "unet", UNet2DConditionModel, unet, dtype)


def read_vae(folder: Folder, pipeline: StableDiffusionPipeline, dtype: str) -> Params:
    """The VAE's weights, numpy arrays.

    Raises:
      InputError: a missing, damaged or foreign file.
    """
    return read_params(folder, "vae", AutoencoderKL, pipeline.vae, dtype)


def read_surroundings(
    folder: Folder, pipeline: StableDiffusionPipeline, text_dtype: str, vae_dtype: str
) -> Frozen:
    """The weights of the VAE and of the text encoders, numpy arrays.

    Raises:
      InputError: a missing, damaged or foreign file.
    """
    frozen = {"vae": read_vae(folder, pipeline, vae_dtype)}
    for name, config in zip(TEXT_ENCODERS, pipeline.text_encoders, strict=False):
        frozen[name] = read_params(folder, name, CLIPTextModel, config, text_dtype)
    return frozen
