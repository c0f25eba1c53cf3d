"""Stable Diffusion around its UNet: the VAE and the text encoder, or SDXL's two.

Batches:
  "images"    uint8 [B, H, W, 3], for training and image-to-image
  "tokens"    int32 [B, E, L], the prompt's token ids for each of E text encoders
  "time_ids"  float32 [B, 6], read by SDXL only: height and width of the original, top and left of
              the crop, height and width of the picture

and what slam-jax prepare has computed before, in any floating dtype:

  "moments"                in place of "images": what the VAE makes of them, [B, h, w, 2 C]
  "encoder_hidden_states"  [B, L, D] and, for SDXL, "text_embeds" [B, P]: what the text encoders
                           make of "tokens"
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from slam_jax.config.options import Precision
from slam_jax.families.pipeline import Batch, Frozen
from slam_jax.families.unet_pipeline import UNetPipeline
from slam_jax.formats.diffusers_write import TOKENIZERS
from slam_jax.formats.tokenizer import Tokenizer, tokenize
from slam_jax.method.method import gaussian
from slam_jax.method.solver import Context
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.vae import LOG_VARIANCES, AutoencoderKL, VAEConfig, sample_latents

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
TIME_IDS = 6


@dataclass(frozen=True)
class StableDiffusionPipeline(UNetPipeline):
    """Stable Diffusion 1.x and 2.x with one text encoder, SDXL with two.

    Attributes:
      vae: configuration of the autoencoder.
      text_encoders: configurations of the text encoders, E of them.
      tokenizers: theirs.
      zeros_for_empty_prompt: the empty prompt's features are zeros (SDXL) and not its encoding.
    """

    vae: VAEConfig
    text_encoders: tuple[CLIPTextConfig, ...]
    tokenizers: tuple[Tokenizer, ...]
    zeros_for_empty_prompt: bool

    example_prompts = (
        "a photo of an astronaut riding a horse on the moon",
        "a bowl of fruit on a wooden table, oil painting",
        "a lighthouse by the sea at sunset",
        "portrait of a cat wearing a hat, highly detailed",
    )

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures, in pixels."""
        height, width, _ = self.latent_shape
        return height * self.vae.downscale, width * self.vae.downscale

    def cut(self, text: str) -> str:
        """The end of the text that is beyond the text encoders' length; "" where it fits."""
        return max((tokenizer.cut(text) for tokenizer in self.tokenizers), key=len)

    def tokenize(self, texts: Sequence[str]) -> Int[np.ndarray, "B E L"]:
        """Token ids of the texts; what is beyond the encoders' length is cut off."""
        return tokenize(self.tokenizers, texts)

    def prompts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """A batch of prompts for pictures of the pipeline's size."""
        time_ids = np.array([*self.image_size, 0, 0, *self.image_size], np.float32)
        time_ids = np.tile(time_ids, (len(texts), 1))
        return {"tokens": self.tokenize(texts), "time_ids": time_ids}

    @property
    def vocabulary(self) -> int:
        return min(encoder.vocab_size for encoder in self.text_encoders)

    def save_tokenizers(self, folder: Path) -> list[str]:
        names: list[str] = list(TOKENIZERS[: len(self.tokenizers)])
        for name, tokenizer in zip(names, self.tokenizers, strict=True):
            tokenizer.backend.save_pretrained(folder / name)
        return names

    @property
    def around(self) -> dict[str, tuple[type, Any]]:
        """Module and configuration of each network around the UNet, by its folder's name."""
        encoders = zip(TEXT_ENCODERS, self.text_encoders, strict=False)
        texts = {name: (CLIPTextModel, config) for name, config in encoders}
        return {"vae": (AutoencoderKL, self.vae), **texts}

    def shapes_around(self, precision: Precision) -> Frozen:
        def shapes(name, network):
            dtype = jnp.dtype(precision.vae if name == "vae" else precision.text_encoder)
            params = functional.abstract_params(*network)
            return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), params)

        return {name: shapes(name, network) for name, network in self.around.items()}

    def prepared_fields(
        self, views: int, captions: int, embeddings: bool, dtype: str
    ) -> dict[str, dict[str, Any]]:
        """What slam-jax prepare stores of an example: name -> dtype and shape.

        Args:
          views: a mirrored twin makes two.
          captions: at most.
          embeddings: whether the text encoders' output is stored.
          dtype: of moments and embeddings.
        """
        *size, channels = self.latent_shape
        length = self.tokenize([""]).shape[1:]
        fields = {
            "moments": (dtype, (views, *size, 2 * channels)),
            "time_ids": ("float32", (views, TIME_IDS)),
            "tokens": ("int32", (captions, *length)),
            "caption_count": ("int32", ()),
        }
        if embeddings:
            width = self.network.cross_attention_dim
            fields["encoder_hidden_states"] = (dtype, (captions, length[-1], width))
            if len(self.text_encoders) == 2:
                width = self.text_encoders[1].projection_dim
                fields["text_embeds"] = (dtype, (captions, width))
        return {
            name: {"dtype": kind, "shape": list(shape)} for name, (kind, shape) in fields.items()
        }

    def latents(
        self, frozen: Frozen, batch: Batch, key: Array, examples: Int[Array, " B"]
    ) -> Float[Array, "B H W C"]:
        if "moments" in batch:
            moments = batch["moments"].astype(jnp.float32)
        else:
            moments = self.moments(frozen, batch["images"])
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return sample_latents(mean, logvar, gaussian(key, examples, mean.shape[1:]), self.vae)

    def moments(self, frozen: Frozen, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B h w 2*C"]:
        """Mean and log variance of the VAE's latents, one behind the other."""
        encode = functional.apply_fn(AutoencoderKL, self.vae, "encode", self.execution)
        mean, logvar = encode(frozen["vae"], images.astype(jnp.float32) / 127.5 - 1)
        return jnp.concatenate([mean, logvar], axis=-1)

    def moments_of(self, latents: Float[Array, "B H W C"]) -> Float[Array, "B H W 2*C"]:
        """Moments of which `latents` makes these latents again, whatever the noise: it adds 3e-7 of
        it, times the scaling factor."""
        mean = latents / self.vae.scaling_factor
        return jnp.concatenate([mean, jnp.full_like(mean, LOG_VARIANCES[0])], axis=-1)

    def contexts(self, frozen: Frozen, batch: Batch, w: float) -> tuple[Context, Context | None]:
        if "encoder_hidden_states" in batch:
            context = self._stored(batch)
        else:
            context = self._embed(frozen, batch["tokens"], batch["time_ids"])
        if w == 0:
            return context, None
        # The empty prompt is encoded once, whatever the batch.
        null = self._embed(frozen, jnp.asarray(self.tokenize([""])), batch["time_ids"][:1])
        if self.zeros_for_empty_prompt:
            null = jax.tree.map(jnp.zeros_like, null)
        null = jax.tree.map(lambda n, c: jnp.broadcast_to(n, c.shape), null, context)
        if len(self.text_encoders) == 2:
            null["added_cond"]["time_ids"] = batch["time_ids"]
        return context, null

    def decode(self, frozen: Frozen, latents: Float[Array, "B H W C"]) -> Float[Array, "B H W 3"]:
        decode = functional.apply_fn(AutoencoderKL, self.vae, "decode", self.execution)
        return jnp.clip(decode(frozen["vae"], latents / self.vae.scaling_factor), -1, 1)

    def _stored(self, batch: Batch) -> Context:
        """A batch's embeddings as `_embed` gives them."""
        features = batch["encoder_hidden_states"].astype(jnp.float32)
        context: Context = {"encoder_hidden_states": features}
        if len(self.text_encoders) == 2:
            pooled = batch["text_embeds"].astype(jnp.float32)
            context["added_cond"] = {"text_embeds": pooled, "time_ids": batch["time_ids"]}
        return context

    def _embed(
        self, frozen: Frozen, tokens: Int[Array, "B E L"], time_ids: Float[Array, "B 6"]
    ) -> Context:
        features = [
            functional.apply_fn(CLIPTextModel, config, execution=self.execution)(
                frozen[name], tokens[:, i]
            )
            for i, (name, config) in enumerate(zip(TEXT_ENCODERS, self.text_encoders, strict=False))
        ]
        if len(features) == 1:
            return {"encoder_hidden_states": features[0].last_hidden_state}
        return {
            "encoder_hidden_states": jnp.concatenate([f.penultimate for f in features], axis=-1),
            "added_cond": {"text_embeds": features[1].pooled, "time_ids": time_ids},
        }
