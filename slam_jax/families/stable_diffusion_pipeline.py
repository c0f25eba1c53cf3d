"""Stable Diffusion around its UNet: one text encoder, or SDXL's two.

In its batches "tokens" are [B, E, L], for each of E text encoders; "time_ids" [B, 6], read by SDXL
only, are height and width of the original, top and left of the crop, height and width of the
picture. `latent_pipeline` has the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from slam_jax.families.latent_pipeline import TEXT_ENCODERS, Embedded, LatentPipeline
from slam_jax.families.pipeline import Batch, Frozen
from slam_jax.families.unet_pipeline import UNetPipeline
from slam_jax.formats.tokenizer import tokenize
from slam_jax.method.solver import Context


@dataclass(frozen=True)
class StableDiffusionPipeline(UNetPipeline, LatentPipeline):
    """Stable Diffusion 1.x and 2.x with one text encoder, SDXL with two.

    Attributes:
      zeros_for_empty_prompt: the empty prompt's features are zeros (SDXL) and not its encoding.
    """

    zeros_for_empty_prompt: bool

    tokens_of = staticmethod(tokenize)

    def prompts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """A batch of prompts for pictures of the pipeline's size."""
        time_ids = np.array([*self.image_size, 0, 0, *self.image_size], np.float32)
        time_ids = np.tile(time_ids, (len(texts), 1))
        return {"tokens": self.tokenize(texts), "time_ids": time_ids}

    def embed(self, frozen: Frozen, tokens: Int[Array, "B E L"]) -> Embedded:
        names = TEXT_ENCODERS[: len(self.text_encoders)]
        features = [
            self.encoder_of(name)(frozen[name], tokens[:, i]) for i, name in enumerate(names)
        ]
        if len(features) == 1:
            return {"encoder_hidden_states": features[0].last_hidden_state}
        return {
            "encoder_hidden_states": jnp.concatenate([f.penultimate for f in features], axis=-1),
            "text_embeds": features[1].pooled,
        }

    def embed_empty(self, frozen: Frozen) -> Embedded:
        empty = super().embed_empty(frozen)
        return jax.tree.map(jnp.zeros_like, empty) if self.zeros_for_empty_prompt else empty

    def context(self, embedded: Embedded, batch: Batch) -> Context:
        context: Context = {"encoder_hidden_states": embedded["encoder_hidden_states"]}
        if len(self.text_encoders) == 2:
            pooled = embedded["text_embeds"]
            context["added_cond"] = {"text_embeds": pooled, "time_ids": batch["time_ids"]}
        return context
