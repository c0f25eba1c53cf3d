"""The handwritten digits as a tiny latent diffusion: nothing around the UNet has weights."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slam_jax.data import digits
from slam_jax.families.family import Batch, Frozen, Pipeline, teacher_network
from slam_jax.method.schedule import NoiseSchedule
from slam_jax.method.solver import Context
from slam_jax.models import functional
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


@dataclass(frozen=True)
class DigitsPipeline(Pipeline):
    """Latents are space-to-depth, contexts one-hot tokens. Batches: "latents" [B, 4, 4, 4] and
    "tokens" [B, 2]."""

    def latents(self, frozen: Frozen, batch: Batch, key, examples) -> Float[Array, "B H W C"]:
        return batch["latents"]

    def contexts(self, frozen: Frozen, batch: Batch, w: float) -> tuple[Context, Context | None]:
        tokens = batch["tokens"]
        if w == 0:
            return self.embed(tokens), None
        null = jnp.broadcast_to(jnp.asarray(digits.NULL_TOKENS), tokens.shape)
        return self.embed(tokens), self.embed(null)

    def embed(self, tokens: Int[Array, "B L"]) -> Context:
        return {"encoder_hidden_states": digits.embed_tokens(tokens)}

    def decode(self, frozen: Frozen, latents: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return jnp.clip(digits.decode_latents(latents), -1, 1)


def digits_pipeline(unet: UNetConfig, prediction_type: str) -> DigitsPipeline:
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
    scheduler: dict[str, Any] = {**SCHEDULER, "prediction_type": prediction_type}
    pipeline = DigitsPipeline(
        unet=unet,
        scheduler=scheduler,
        schedule=NoiseSchedule.from_config(scheduler),
        latent_shape=digits.LATENT_SHAPE,
    )
    try:
        params = functional.abstract_params(UNet2DConditionModel, unet)
        x, context = jnp.zeros((1, *digits.LATENT_SHAPE)), pipeline.embed(np.zeros((1, 2), int))
        jax.eval_shape(lambda p: teacher_network(unet)(p)(x, jnp.zeros(1), context), params)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"unet: {' '.join(str(error).split())}") from error
    return pipeline
