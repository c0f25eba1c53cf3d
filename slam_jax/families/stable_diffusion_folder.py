"""Reads Stable Diffusion from a folder in the layout of diffusers: configurations and weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json
from slam_jax.config.validate import method_of
from slam_jax.families.latent_pipeline import TEXT_ENCODERS, TIME_IDS, LatentPipeline
from slam_jax.families.pipeline import Frozen, Params
from slam_jax.families.stable_diffusion_pipeline import StableDiffusionPipeline
from slam_jax.formats.diffusers_folder import (
    Folder,
    read_config,
    read_model_index,
    read_params,
    read_tokenizer,
)
from slam_jax.formats.model_index import CLASSES, CLASSES_XL, PIPELINES, tokenizer_of
from slam_jax.formats.tokenizer import Tokenizer
from slam_jax.method.flow_matching import FlowMatching
from slam_jax.method.method import Method
from slam_jax.method.pcm import Pcm
from slam_jax.method.registry import schedule_from_config
from slam_jax.method.schedule import Schedule
from slam_jax.method.slam import Slam
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.t5 import T5Config
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.models.vae import AutoencoderKL, VAEConfig

T = TypeVar("T")

RECORD_FILE = "slam.json"  # how a student was made
LARGEST = 16_384  # pixels of a side of a picture
FEW_STEPS = ("LCMScheduler", "TCDScheduler")  # schedulers that no teacher comes with


def read_record(folder: Folder) -> dict[str, Any]:
    """How a student of ours was made; empty where the folder does not say.

    Raises:
      InputError: the record is damaged.
    """
    path = folder.path / RECORD_FILE
    return read_json(path, "export the model again") if path.is_file() else {}


def is_student(folder: Folder, pipeline: StableDiffusionPipeline) -> bool:
    """Whether the UNet draws in few steps: it is told gamma, comes with a scheduler for few steps,
    or with a record of how it was distilled."""
    told_gamma = pipeline.network.time_cond_proj_dim is not None
    few_steps = pipeline.scheduler.get("_class_name") in FEW_STEPS
    return told_gamma or few_steps or "method" in read_record(folder)


def method_of_student(folder: Folder, pipeline: StableDiffusionPipeline) -> Method:
    """How a student was distilled, by its record, or as far as drawing depends on it by its
    scheduler: LCM's, or TCD's, whose steps are those of PCM.

    Raises:
      InputError: record or scheduler say something impossible.
    """
    if record := read_record(folder):
        return method_of(record, folder.path / RECORD_FILE)
    grid = _grid(folder, pipeline)
    if pipeline.scheduler.get("_class_name") == "TCDScheduler":
        return Pcm(num_ddim_timesteps=grid, phases=1)
    return Slam(num_ddim_timesteps=grid)


def _grid(folder: Folder, pipeline: StableDiffusionPipeline) -> int:
    """M of the distillation of a student without a record, as its scheduler says.

    Raises:
      InputError: it says something impossible.
    """
    steps = pipeline.scheduler.get("original_inference_steps", 50)
    count = pipeline.schedule.num_train_timesteps
    if type(steps) is not int or steps < 1 or count % steps:
        raise InputError(
            f"{folder.path}/scheduler/scheduler_config.json: original_inference_steps = {steps!r}, "
            f"expected a divisor of the {count} training timesteps"
        )
    return steps


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
    index = read_index_of(folder, (CLASSES, CLASSES_XL), "stable_diffusion")
    unet = parsed(folder, "unet", UNetConfig.from_dict, UNet2DConditionModel)
    vae = parsed(folder, "vae", VAEConfig.from_dict, AutoencoderKL)
    names = [name for name in TEXT_ENCODERS if name in index]
    text_encoders = tuple(
        parsed(folder, name, CLIPTextConfig.from_dict, CLIPTextModel) for name in names
    )
    _check_fit(folder, unet, vae, text_encoders)
    tokenizers = tuple(read_tokenizer(folder, tokenizer_of(name)) for name in names)
    for name, tokenizer, encoder in zip(names, tokenizers, text_encoders, strict=True):
        check_tokenizer(folder.path / name, tokenizer, encoder)
    high, wide = (side * vae.downscale for side in unet.sides or (64, 64))
    size = high if height is None else height, wide if width is None else width
    sides = latent_sides(size, vae.downscale)
    return StableDiffusionPipeline(
        network=unet,
        scheduler=read_config(folder, "scheduler"),
        schedule=parsed(folder, "scheduler", _schedule),
        latent_shape=(*sides, vae.latent_channels),
        vae=vae,
        text_encoders=text_encoders,
        tokenizers=tokenizers,
        zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", False)),
    )


def read_index_of(
    folder: Folder, kinds: tuple[Mapping[str, Any], ...], family: str
) -> dict[str, Any]:
    """The model_index.json of a family's model.

    Args:
      folder: the model.
      kinds: values of PIPELINES, those of the family.
      family: its name.

    Raises:
      InputError: it cannot be read, or the model is of another family.
    """
    index = read_model_index(folder)
    name = index["_class_name"]
    if not any(PIPELINES[name] is kind for kind in kinds):
        theirs = [other for other, classes in PIPELINES.items() if classes in kinds]
        raise InputError(
            f"{folder.path / 'model_index.json'}: _class_name is {name!r}, those of "
            f"config.teacher.family = {family!r} are {', '.join(theirs)}"
        )
    return index


def latent_sides(
    size: tuple[int, int], downscale: int, patch: int = 1, most: int | None = None
) -> tuple[int, int]:
    """Height and width of the latents of pictures.

    Args:
      size: height and width of the pictures, in pixels.
      downscale: pixels of a latent along a side.
      patch: latents of a patch of the denoiser, along a side.
      most: patches along a side; None: as many as LARGEST has.

    Raises:
      InputError: there are no such pictures.
    """
    unit = downscale * patch
    for name, side in zip(("height", "width"), size, strict=True):
        if side < unit or side % unit:
            raise InputError(f"{name} = {side}: expected a positive multiple of {unit} pixels")
        if side > (largest := LARGEST if most is None else most * unit):
            raise InputError(f"{name} = {side}: expected at most {largest} pixels")
    height, width = size
    return height // downscale, width // downscale


def parsed(
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


def _schedule(config: dict[str, Any]) -> Schedule:
    kind = config.get("_class_name")
    if FlowMatching.reads(config):
        raise ValueError(
            f"{kind}: of flow matching, which no UNet here is; a DDPM noise schedule is expected"
        )
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        raise ValueError(f"{kind} with no beta_schedule; a DDPM noise schedule is expected")
    return schedule_from_config(config)


def check_tokenizer(where: Path, tokenizer: Tokenizer, encoder: CLIPTextConfig | T5Config) -> None:
    """The text encoder takes whatever its tokenizer gives.

    Raises:
      InputError: it does not.
    """
    for name, given in (
        ("max_position_embeddings", tokenizer.length),
        ("vocab_size", tokenizer.vocabulary),
    ):
        taken = getattr(encoder, name, given)  # T5 takes texts of any length
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
    # Both are there: their configs say so.
    pooled, embedded = text_encoders[1].projection_dim or 0, unet.addition_time_embed_dim or 0
    inputs = pooled + TIME_IDS * embedded
    require("projection_class_embeddings_input_dim", inputs, "for pooled text and time_ids")


def read_unet(folder: Folder, pipeline: StableDiffusionPipeline, dtype: str) -> Params:
    """The UNet's weights, numpy arrays.

    Raises:
      InputError: a missing, damaged or foreign file.
    """
    return read_params(folder, "unet", UNet2DConditionModel, pipeline.network, dtype)


def read_surroundings(
    folder: Folder, pipeline: LatentPipeline, text_dtype: str | None, vae_dtype: str
) -> Frozen:
    """The weights of the VAE and, unless their dtype is None, of the text encoders, numpy arrays.

    Raises:
      InputError: a missing, damaged or foreign file.
    """
    dtypes = dict.fromkeys(pipeline.around, text_dtype) | {"vae": vae_dtype}
    return {
        name: read_params(folder, name, *pipeline.around[name], dtype)
        for name, dtype in dtypes.items()
        if dtype is not None
    }
