"""Pipelines whose denoiser is the UNet of diffusers, `UNet2DConditionModel`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slam_jax.families.pipeline import Params, Pipeline
from slam_jax.method.schedule import gamma_embedding
from slam_jax.models import functional
from slam_jax.models.execution import Execution
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig

GAMMA_EMBEDDING_DIM = 256  # of the authors, as diffusers' LCM has for the guidance


def abstract_params(network: UNetConfig) -> Params:
    """The nested dict of a UNet's weights, as ShapeDtypeStructs."""
    return functional.abstract_params(UNet2DConditionModel, network)


def unet_function(network: UNetConfig, execution: Execution = Execution()) -> Callable[..., Array]:
    """(params, sample, timesteps, encoder_hidden_states, ...) -> output [B, H, W, C]."""
    return functional.apply_fn(UNet2DConditionModel, network, execution=execution)


def gamma_norm(params: Params) -> float:
    """The norm of the weights by which a UNet is told gamma; 0: they were never trained."""
    return float(np.linalg.norm(params["time_embedding"]["cond_proj"]["kernel"]))


@dataclass(frozen=True)
class UNetPipeline(Pipeline):
    """A pipeline with a UNet; a context names arguments of it."""

    network: UNetConfig

    def abstract_params(self, network: UNetConfig) -> Params:
        return abstract_params(network)

    def init(self, network: UNetConfig, key: Array) -> Params:
        return functional.init(UNet2DConditionModel, network, key)

    def apply(self, network: UNetConfig, remat: str = "none") -> Callable:
        unet = unet_function(network, self.execution)
        dim = network.time_cond_proj_dim

        def denoise(params, x, t, context, gamma):
            condition = None
            if dim is not None and gamma is not None:
                condition = gamma_embedding(gamma, dim)
            t = t.astype(jnp.float32)
            return unet(params, x, t, **context, timestep_cond=condition, remat=remat)

        return denoise

    def gamma_network(self) -> UNetConfig:
        return replace(self.network, time_cond_proj_dim=GAMMA_EMBEDDING_DIM)

    def gamma_params(self, params: Params) -> Params:
        # diffusers adds the condition to the timestep's features: a projection of zeros adds none.
        shape = (GAMMA_EMBEDDING_DIM, self.network.block_out_channels[0])
        projection = {"kernel": np.zeros(shape, np.float32)}
        embedding = {**params["time_embedding"], "cond_proj": projection}
        return {**params, "time_embedding": embedding}
