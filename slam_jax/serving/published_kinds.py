"""What is said of a UNet, and of the transformer of Stable Diffusion 3, that is not said of every
denoiser: gamma's input, and random inputs to predict from."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from slam_jax.families.latent_pipeline import TIME_IDS
from slam_jax.families.pipeline import Params
from slam_jax.families.sd3_folder import read_network
from slam_jax.families.unet_pipeline import (
    GAMMA_EMBEDDING_DIM,
    abstract_params,
    gamma_norm,
    unet_function,
)
from slam_jax.method.method import Method
from slam_jax.method.schedule import gamma_embedding
from slam_jax.method.slam import Slam
from slam_jax.models import functional
from slam_jax.models.mmdit import SD3Config, SD3Transformer2DModel
from slam_jax.models.unet import UNetConfig
from slam_jax.serving import stock_networks
from slam_jax.serving.published_denoiser import FAIL, LATENTS, OK, Kind, Result

CONTEXT = 77  # tokens of the random input


def check_gamma_input(config: UNetConfig, method: Method | None) -> Iterator[Result]:
    """Whether the UNet is told gamma (LCM: the guidance) beside the time."""
    dim, name = config.time_cond_proj_dim, "gamma input"
    if dim == GAMMA_EMBEDDING_DIM:
        yield Result(OK, name, f"time_cond_proj_dim = {dim}")
    elif dim is None and method is not None and not method.tells_gamma:
        how = "conditioning = 'snr'" if isinstance(method, Slam) else method.title or method.name
        yield Result(OK, name, f"none, as this student was distilled with {how}")
    else:
        yield Result(
            FAIL,
            name,
            f"time_cond_proj_dim = {dim}, expected {GAMMA_EMBEDDING_DIM} in a student's "
            "config.json",
        )


def check_projection(config: UNetConfig, params: Params) -> Iterator[Result]:
    """Whether the weights by which a UNet is told gamma were trained."""
    if config.time_cond_proj_dim is None:
        return
    norm = gamma_norm(params)
    facts = f"norm of gamma's projection = {norm:.4g}"
    if norm == 0:
        yield Result(FAIL, "gamma weights", f"{facts}: they were never trained")
    else:
        yield Result(OK, "gamma weights", facts)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def unet_inputs(config: UNetConfig) -> dict[str, Any]:
    """Arguments for the UNet: two latents, times in the middle and at the end."""
    rng, edge = np.random.default_rng(0), min((LATENTS, *(config.sides or ())))
    normal = partial(_normal, rng)
    added, dim = None, config.addition_time_embed_dim
    if dim is not None:
        pooled = (config.projection_class_embeddings_input_dim or 0) - TIME_IDS * dim
        ids = np.tile(np.array([8 * edge, 8 * edge, 0, 0, 8 * edge, 8 * edge], np.float32), (2, 1))
        added = {"text_embeds": normal(2, pooled), "time_ids": ids}
    gamma, features = np.array([0.35, 1], np.float32), config.time_cond_proj_dim
    return {
        "sample": normal(2, edge, edge, config.in_channels),
        "timesteps": np.array([499, 999], np.float32),
        "encoder_hidden_states": normal(2, CONTEXT, config.cross_attention_dim),
        "timestep_cond": features and np.asarray(gamma_embedding(jnp.asarray(gamma), features)),
        "added_cond": added,
    }


def transformer_inputs(config: SD3Config) -> dict[str, Any]:
    """Arguments for the transformer of Stable Diffusion 3, alike."""
    rng, edge = np.random.default_rng(0), min(config.sample_size, LATENTS)
    return {
        "sample": _normal(rng, 2, edge, edge, config.in_channels),
        "timesteps": np.array([499, 1000], np.float32),
        "encoder_hidden_states": _normal(rng, 2, CONTEXT, config.joint_attention_dim),
        "pooled_projections": _normal(rng, 2, config.pooled_projection_dim),
    }


UNET = Kind(
    name="unet",
    words="UNet",
    stock="UNet2DConditionModel",
    parse=UNetConfig.from_dict,
    abstract=abstract_params,
    function=unet_function,
    inputs=unet_inputs,
    stock_output=lambda network, inputs: stock_networks.unet_output(network, inputs),
    check_config=check_gamma_input,
    check_params=check_projection,
)
TRANSFORMER = Kind(
    name="transformer",
    words="transformer",
    stock="SD3Transformer2DModel",
    parse=read_network,
    abstract=partial(functional.abstract_params, SD3Transformer2DModel),
    function=partial(functional.apply_fn, SD3Transformer2DModel),
    inputs=transformer_inputs,
    stock_output=lambda network, inputs: stock_networks.transformer_output(network, inputs),
)
KINDS = {kind.name: kind for kind in (UNET, TRANSFORMER)}
