"""The handwritten digits as a tiny latent diffusion, whose teacher is trained here.

Nothing around the UNet has weights: latents are space-to-depth, contexts are one-hot tokens.
Batches: "latents" [B, 4, 4, 4] and "tokens" [B, 2].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slam_jax.base.errors import InputError, options_of, prefixed
from slam_jax.base.options import OptionError, check
from slam_jax.config.options import Teacher
from slam_jax.data import digits, sources
from slam_jax.data.options import Data
from slam_jax.data.reference import Reference
from slam_jax.families.pipeline import Batch, Frozen, teacher_network
from slam_jax.families.trained_here import TrainedHere
from slam_jax.families.unet_pipeline import UNetPipeline
from slam_jax.method.flow_matching import FLOW
from slam_jax.method.registry import schedule_from_config
from slam_jax.method.solver import Context
from slam_jax.models.unet import UNetConfig

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
FLOW_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}


@dataclass(frozen=True)
class DigitsPipeline(UNetPipeline):
    """Prompts are the digits "0" to "9"."""

    example_prompts = labels = tuple("0123456789")

    @property
    def vocabulary(self) -> int:
        return digits.VOCABULARY

    def latents(self, frozen: Frozen, batch: Batch, key, examples) -> Float[Array, "B H W C"]:
        return batch["latents"]

    def contexts(self, frozen: Frozen, batch: Batch, w: float) -> tuple[Context, Context | None]:
        tokens = batch["tokens"]
        context = {"encoder_hidden_states": digits.embed_tokens(tokens)}
        if w == 0:
            return context, None
        null = jnp.broadcast_to(jnp.asarray(digits.NULL_TOKENS), tokens.shape)
        return context, {"encoder_hidden_states": digits.embed_tokens(null)}

    def decode(self, frozen: Frozen, latents: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return jnp.clip(digits.decode_latents(latents), -1, 1)

    def prompts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        for text in texts:
            if text not in self.example_prompts:
                raise InputError(f"prompt {text!r}: this model draws the digits 0 to 9")
        return {"tokens": digits.tokenize(np.array([int(text) for text in texts]))}


def digits_pipeline(unet: UNetConfig, prediction_type: str) -> DigitsPipeline:
    """The pipeline of the handwritten digits, with Stable Diffusion's noise schedule, or that of
    flow matching where this is what the UNet predicts.

    Raises:
      OptionError: the UNet's channels or context width are not those of the digits, or no such
        UNet can be built.
    """
    channels = digits.LATENT_SHAPE[-1]
    wanted = {
        "in_channels": channels,
        "out_channels": channels,
        "cross_attention_dim": digits.VOCABULARY,
        "addition_embed_type": None,
    }
    for name, value in wanted.items():
        given = getattr(unet, name)
        check(given == value, f"network.{name}", given, f"{value} for the digits")
    side = digits.LATENT_SHAPE[0]
    fits = unet.sample_size in (None, side)
    check(fits, "network.sample_size", unet.sample_size, f"{side} for the digits")
    published: dict[str, Any] = FLOW_SCHEDULER if prediction_type == FLOW else SCHEDULER
    scheduler = {**published, "prediction_type": prediction_type}
    pipeline = DigitsPipeline(
        network=unet,
        scheduler=scheduler,
        schedule=schedule_from_config(scheduler),
        latent_shape=digits.LATENT_SHAPE,
    )
    try:
        x, batch = jnp.zeros((1, *digits.LATENT_SHAPE)), {"tokens": jnp.zeros((1, 2), jnp.int32)}
        context, _ = pipeline.contexts({}, batch, w=0)
        denoise = teacher_network(pipeline)
        params = pipeline.abstract_params(unet)
        jax.eval_shape(lambda p: denoise(p)(x, jnp.zeros(1), context), params)
    except (ValueError, TypeError, ArithmeticError) as error:
        why = " ".join(str(error).split())
        raise OptionError("network", "{...}", f"a UNet that can be built ({why})") from error
    return pipeline


class Digits(TrainedHere):
    """A model of the digits."""

    name = "digits"

    @classmethod
    def open(
        cls, teacher: Teacher, folder: Path, size: int | None = None, weights: bool = True
    ) -> "Digits":
        given = teacher.network.get("time_cond_proj_dim")
        with options_of("config.teacher"):
            expected = "None: the digits have no such input"
            check(given is None, "network.time_cond_proj_dim", given, expected)
        return super().open(teacher, folder, size, weights)

    @classmethod
    def make(cls, network: dict[str, Any], prediction_type: str) -> DigitsPipeline:
        try:
            unet = UNetConfig.from_dict(network)
        except (ValueError, TypeError) as error:
            expected = f"the configuration of a UNet ({error})"
            raise OptionError("network", "{...}", expected) from error
        return digits_pipeline(unet, prediction_type)

    def source(self, data: Data) -> digits.Source:
        with prefixed("config.data: "):
            if data.source != digits.Source.name:
                raise InputError(f"source = {data.source!r}, expected 'digits' for this teacher")
            sources.check_used(data, data.source)
        return digits.Source()

    def batch_shapes(self, data: Data | None, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        source = digits.Source() if data is None else self.source(data)
        arrays, _ = source.read(np.arange(1), np.arange(1))
        return {
            name: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype)
            for name, array in arrays.items()
        }

    @classmethod
    def reference(cls) -> Reference:
        images, labels = digits.load()
        return Reference(images, tuple(map(str, labels)))
