"""Reads Stable Diffusion 3 and 3.5 from a folder in the layout of diffusers."""

from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.families.pipeline import Params
from slam_jax.families.sd3_pipeline import T5_LENGTH, StableDiffusion3Pipeline
from slam_jax.families.stable_diffusion_folder import (
    RECORD_FILE,
    check_tokenizer,
    latent_sides,
    parsed,
    read_index_of,
    read_record,
)
from slam_jax.formats.diffusers_folder import (
    Folder,
    read_config,
    read_params,
    read_t5_tokenizer,
    read_tokenizer,
)
from slam_jax.formats.model_index import CLASSES_3, class_of, tokenizer_of
from slam_jax.method.flow_matching import FlowMatching
from slam_jax.method.schedule import Schedule
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.mmdit import PATCH, SD3Config, SD3Transformer2DModel
from slam_jax.models.t5 import T5Config, T5EncoderModel
from slam_jax.models.vae import AutoencoderKL, SD3VAEConfig

FAMILY = "sd3"
FEW_STEPS = "FlowMatchLCMScheduler"  # a scheduler that no teacher comes with
CLIPS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"
LARGE = 38  # layers and heads of 3.5 large
NOTE_ON_T5 = (
    "no T5 (text_encoder_3): prompts are read by CLIP alone, whose {} tokens are all that is seen "
    "of them; long prompts and lettering suffer"
)


def read_index(folder: Folder) -> dict[str, Any]:
    """The model_index.json of a Stable Diffusion 3.

    Raises:
      InputError: it cannot be read, or is of another model.
    """
    return read_index_of(folder, (CLASSES_3,), FAMILY)


def read_pipeline(
    folder: Folder, height: int | None = None, width: int | None = None
) -> StableDiffusion3Pipeline:
    """Everything of a folder but the weights.

    Args:
      folder: the model.
      height, width: of the pictures, in pixels; None: the size that the model was trained on.

    Raises:
      InputError: a part is missing, not supported, or does not fit the others; or there are no
        pictures of that size.
    """
    index = read_index(folder)
    network = parsed(folder, "transformer", read_network, SD3Transformer2DModel)
    vae = parsed(folder, "vae", SD3VAEConfig.from_dict, AutoencoderKL)
    clips = [parsed(folder, name, CLIPTextConfig.from_dict, CLIPTextModel) for name in CLIPS]
    tokenizers = [read_tokenizer(folder, tokenizer_of(name)) for name in CLIPS]
    encoders: list[CLIPTextConfig | T5Config] = [*clips]
    t5 = None
    if class_of(index.get(T5)) is not None:
        t5 = parsed(folder, T5, T5Config.from_dict, T5EncoderModel)
        encoders.append(t5)
        tokenizers.append(read_t5_tokenizer(folder, tokenizer_of(T5), T5_LENGTH))
    _check_fit(folder, network, vae, clips, t5)
    for name, tokenizer, encoder in zip((*CLIPS, T5), tokenizers, encoders, strict=False):
        check_tokenizer(folder.path / name, tokenizer, encoder)
    usual = network.sample_size * vae.downscale
    size = usual if height is None else height, usual if width is None else width
    sides = latent_sides(size, vae.downscale, PATCH, network.pos_embed_max_size)
    return StableDiffusion3Pipeline(
        network=network,
        scheduler=read_config(folder, "scheduler"),
        schedule=parsed(folder, "scheduler", _schedule),
        latent_shape=(*sides, vae.latent_channels),
        vae=vae,
        text_encoders=tuple(encoders),
        tokenizers=tuple(tokenizers),
    )


def read_network(config: dict[str, Any]) -> SD3Config:
    """The configuration of a transformer, from the contents of its config.json.

    Raises:
      ValueError: it is not supported; says what of it.
    """
    if config.get("guidance_embeds"):
        raise ValueError(
            "guidance_embeds = True: it was distilled to be told its guidance; a teacher here has "
            "to be drawn with and without it"
        )
    network = SD3Config.from_dict(config)
    if network.num_layers == network.num_attention_heads == LARGE:
        raise ValueError(
            f"num_layers = {LARGE}, of {LARGE} heads: Stable Diffusion 3.5 large, "
            "of 8.1 billion weights; those of 3 medium and 3.5 medium, of 24 layers and up to 2.5 "
            "billion weights, are supported"
        )
    return network


def _schedule(config: dict[str, Any]) -> Schedule:
    if not FlowMatching.reads(config):
        raise ValueError(
            f"{config.get('_class_name')}: one of flow matching is expected, as "
            "FlowMatchEulerDiscreteScheduler"
        )
    return FlowMatching.from_config(config)


def _check_fit(
    folder: Folder,
    network: SD3Config,
    vae: SD3VAEConfig,
    clips: list[CLIPTextConfig],
    t5: T5Config | None,
) -> None:
    """The parts' widths fit each other.

    Raises:
      InputError: they do not.
    """
    pooled = sum(clip.projection_dim or 0 for clip in clips)
    width = sum(clip.hidden_size for clip in clips)
    of_vae = "the latent_channels of vae/config.json"
    joint = network.joint_attention_dim
    for name, ok, expected, reason in (
        ("in_channels", network.in_channels == vae.latent_channels, vae.latent_channels, of_vae),
        ("out_channels", network.out_channels == vae.latent_channels, vae.latent_channels, of_vae),
        (
            "pooled_projection_dim",
            network.pooled_projection_dim == pooled,
            pooled,
            "the projection_dim of both CLIPs, added up",
        ),
        (
            "joint_attention_dim",
            joint >= width if t5 is None else joint == t5.d_model,
            f"{width} or more" if t5 is None else t5.d_model,
            "both CLIPs' hidden_size, added up" if t5 is None else "the d_model of T5",
        ),
    ):
        if not ok:
            raise InputError(
                f"{folder.path}/transformer/config.json: {name} = {getattr(network, name)}, "
                f"expected {expected}, {reason}"
            )


def is_student(folder: Folder, pipeline: StableDiffusion3Pipeline) -> bool:
    """Whether the transformer draws in few steps: it comes with a scheduler for few steps, or with
    a record of how it was distilled.

    Raises:
      InputError: the record is damaged, or missing where the scheduler is one for few steps.
    """
    if "method" in read_record(folder):
        return True
    if pipeline.scheduler.get("_class_name") == FEW_STEPS:
        raise InputError(
            f"{folder.path}: {FEW_STEPS} is for a few-step student, but there is no {RECORD_FILE} "
            "that says how it draws"
        )
    return False


def read_transformer(folder: Folder, pipeline: StableDiffusion3Pipeline, dtype: str) -> Params:
    """The transformer's weights, numpy arrays.

    Raises:
      InputError: a missing, damaged or foreign file.
    """
    return read_params(folder, "transformer", SD3Transformer2DModel, pipeline.network, dtype)
