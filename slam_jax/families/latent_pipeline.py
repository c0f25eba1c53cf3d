"""Pipelines of published models: an autoencoder and text encoders around the denoiser.

Batches:
  "images"    uint8 [B, H, W, 3], for training and image-to-image
  "tokens"    int32 [B, ...], the prompt's token ids for all text encoders
  "time_ids"  float32 [B, 6], read by SDXL only; none of SD 3

and what slam-jax prepare has computed before, in any floating dtype:

  "moments"                in place of "images": what the VAE makes of them, [B, h, w, 2 C]
  "encoder_hidden_states"  [B, L, D] and perhaps "text_embeds" [B, P]: what the text encoders make
                           of "tokens"
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from slam_jax.config.options import Precision
from slam_jax.families.pipeline import Batch, Frozen, Pipeline
from slam_jax.formats.model_index import TOKENIZERS
from slam_jax.formats.tokenizer import Tokenizer
from slam_jax.method.method import gaussian
from slam_jax.method.solver import Context
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.t5 import T5Config, T5EncoderModel
from slam_jax.models.vae import LOG_VARIANCES, AutoencoderKL, VAEConfig, sample_latents, unscaled

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TEXT_MODULES = {CLIPTextConfig: CLIPTextModel, T5Config: T5EncoderModel}
EMBEDDINGS = ("encoder_hidden_states", "text_embeds")
# Among frozen weights, where there are no text encoders: what they made of an empty prompt.
EMPTY = "empty_prompt"
TIME_IDS = 6
# Embeddings of texts by their names in a batch.
Embedded = dict[str, Float[Array, "B ..."]]


@dataclass(frozen=True)
class LatentPipeline(Pipeline):
    """A published model without its weights.

    Attributes:
      vae: configuration of the autoencoder.
      text_encoders: configurations of the text encoders, E of them.
      tokenizers: theirs.
    """

    vae: VAEConfig
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Tokenizer, ...]

    # (tokenizers, texts) -> token ids [B, ...]; without the pipeline, whose arrays would start a
    # backend where workers read.
    tokens_of: ClassVar[Callable[..., Int[np.ndarray, "B ..."]]]
    example_prompts = (
        "a photo of an astronaut riding a horse on the moon",
        "a bowl of fruit on a wooden table, oil painting",
        "a lighthouse by the sea at sunset",
        "portrait of a cat wearing a hat, highly detailed",
    )

    @abstractmethod
    def embed(self, frozen: Frozen, tokens: Int[Array, "B ..."]) -> Embedded:
        """What the text encoders make of token ids, by names of EMBEDDINGS."""

    @abstractmethod
    def context(self, embedded: Embedded, batch: Batch) -> Context:
        """What the denoiser is told, of embeddings and what else is in their batch."""

    def embed_empty(self, frozen: Frozen) -> Embedded:
        """The embeddings of one empty prompt."""
        if EMPTY in frozen:
            return frozen[EMPTY]
        return self.embed(frozen, jnp.asarray(self.tokenize([""])))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures, in pixels."""
        height, width, _ = self.latent_shape
        return height * self.vae.downscale, width * self.vae.downscale

    def cut(self, text: str) -> str:
        """The end of the text that is beyond the text encoders' length; "" where it fits."""
        return max((tokenizer.cut(text) for tokenizer in self.tokenizers), key=len)

    def tokenize(self, texts: Sequence[str]) -> Int[np.ndarray, "B ..."]:
        """Token ids of the texts; what is beyond the encoders' length is cut off."""
        return self.tokens_of(self.tokenizers, texts)

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
        """Module and configuration of each network around the denoiser, by its folder's name."""
        encoders = zip(TEXT_ENCODERS, self.text_encoders, strict=False)
        texts = {name: (TEXT_MODULES[type(config)], config) for name, config in encoders}
        return {"vae": (AutoencoderKL, self.vae), **texts}

    def encoder_of(self, name: str) -> Callable[..., Any]:
        """(params, tokens) -> features, of the text encoder of that name."""
        return functional.apply_fn(*self.around[name], execution=self.execution)

    def shapes_around(self, precision: Precision, embedded: bool = False) -> Frozen:
        def shapes(name, network):
            dtype = jnp.dtype(precision.vae if name == "vae" else precision.text_encoder)
            params = functional.abstract_params(*network)
            return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), params)

        found = {name: shapes(name, network) for name, network in self.around.items()}
        if not embedded:
            return found
        return {"vae": found["vae"], EMPTY: self.embedded_shapes(1)}

    def embedded_shapes(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the embeddings of so many texts."""
        length = self.tokenize([""]).shape[1:]
        tokens = jax.ShapeDtypeStruct((count, *length), jnp.int32)
        return jax.eval_shape(self.embed, self.shapes_around(Precision()), tokens)

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
        prompt = self.prompts([""])
        fields: dict[str, tuple[str, tuple[int, ...]]] = {
            "moments": (dtype, (views, *size, 2 * channels))
        }
        if "time_ids" in prompt:
            fields["time_ids"] = ("float32", (views, TIME_IDS))
        fields["tokens"] = ("int32", (captions, *prompt["tokens"].shape[1:]))
        fields["caption_count"] = ("int32", ())
        if embeddings:
            shapes = self.embedded_shapes(1)
            for name in EMBEDDINGS:
                if name in shapes:
                    fields[name] = (dtype, (captions, *shapes[name].shape[1:]))
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
        mean = unscaled(latents, self.vae)
        return jnp.concatenate([mean, jnp.full_like(mean, LOG_VARIANCES[0])], axis=-1)

    def contexts(self, frozen: Frozen, batch: Batch, w: float) -> tuple[Context, Context | None]:
        if "encoder_hidden_states" in batch:
            stored = (name for name in EMBEDDINGS if name in batch)
            embedded = {name: batch[name].astype(jnp.float32) for name in stored}
        else:
            embedded = self.embed(frozen, batch["tokens"])
        context = self.context(embedded, batch)
        if w == 0:
            return context, None
        # The empty prompt is encoded once, whatever the batch.
        null = jax.tree.map(
            lambda n, c: jnp.broadcast_to(n, c.shape), self.embed_empty(frozen), embedded
        )
        return context, self.context(null, batch)

    def decode(self, frozen: Frozen, latents: Float[Array, "B H W C"]) -> Float[Array, "B H W 3"]:
        decode = functional.apply_fn(AutoencoderKL, self.vae, "decode", self.execution)
        return jnp.clip(decode(frozen["vae"], unscaled(latents, self.vae)), -1, 1)
