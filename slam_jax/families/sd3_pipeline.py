"""Stable Diffusion 3 around its transformer: two text encoders of CLIP, and perhaps one of T5.

The tokens of a text are those of both CLIPs, one behind the other along the features and filled up
with zeros, then those of T5; where there is no T5 these are zeros. What is told of the text as a
whole are both CLIPs' projections. In batches "tokens" are [B, L], the token ids for all text
encoders in a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from slam_jax.base.errors import InputError
from slam_jax.families.latent_pipeline import TEXT_ENCODERS, Embedded, LatentPipeline
from slam_jax.families.pipeline import Batch, Frozen, Params
from slam_jax.formats.tokenizer import tokenize_in_a_row
from slam_jax.method.solver import Context
from slam_jax.models import functional
from slam_jax.models.mmdit import PLACES, SD3Config, SD3Transformer2DModel

T5_LENGTH = 256  # tokens; what the pipelines of diffusers take where nothing else is said
NO_GAMMA = (
    "this transformer has no input for gamma; the method has to draw without (slam with "
    "conditioning = 'snr', lcm, pcm)"
)


@dataclass(frozen=True)
class StableDiffusion3Pipeline(LatentPipeline):
    """Stable Diffusion 3 and 3.5."""

    network: SD3Config

    tokens_of = staticmethod(tokenize_in_a_row)
    constants = (PLACES,)

    @property
    def has_t5(self) -> bool:
        """Whether T5 reads the prompts too."""
        return len(self.text_encoders) == 3

    def abstract_params(self, network: SD3Config) -> Params:
        return functional.abstract_params(SD3Transformer2DModel, network)

    def init(self, network: SD3Config, key: Array) -> Params:
        return functional.init(SD3Transformer2DModel, network, key)

    def apply(self, network: SD3Config, remat: str = "none") -> Callable:
        transformer = functional.apply_fn(SD3Transformer2DModel, network, execution=self.execution)

        def denoise(params, x, t, context, gamma):
            del gamma  # t says all
            states, repeats = context["encoder_hidden_states"], 1
            if not self.has_t5:  # what is there in its place is all the same
                states, repeats = states[:, : 1 - T5_LENGTH], T5_LENGTH
            told = {**context, "encoder_hidden_states": states}
            t = t.astype(jnp.float32)
            return transformer(params, x, t, **told, remat=remat, repeats=repeats)

        return denoise

    def gamma_network(self) -> SD3Config:
        raise InputError(NO_GAMMA)

    def gamma_params(self, params: Params) -> Params:
        raise InputError(NO_GAMMA)

    def cut(self, text: str) -> str:
        """The end of the text that no text encoder sees."""
        return min((tokenizer.cut(text) for tokenizer in self.tokenizers), key=len)

    @property
    def vocabulary(self) -> int:
        return max(encoder.vocab_size for encoder in self.text_encoders)

    def prompts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        return {"tokens": self.tokenize(texts)}

    def embed(self, frozen: Frozen, tokens: Int[Array, "B L"]) -> Embedded:
        ends = np.cumsum([tokenizer.length for tokenizer in self.tokenizers])
        parts = dict(zip(TEXT_ENCODERS, jnp.split(tokens, ends[:-1], axis=1), strict=False))
        clips = [self.encoder_of(name)(frozen[name], parts[name]) for name in TEXT_ENCODERS[:2]]
        states = jnp.concatenate([clip.penultimate for clip in clips], axis=-1)
        width = self.network.joint_attention_dim
        states = jnp.pad(states, ((0, 0), (0, 0), (0, width - states.shape[-1])))
        if self.has_t5:
            name = TEXT_ENCODERS[2]
            of_t5 = self.encoder_of(name)(frozen[name], parts[name])
        else:
            of_t5 = jnp.zeros((len(tokens), T5_LENGTH, width))
        return {
            "encoder_hidden_states": jnp.concatenate([states, of_t5], axis=1),
            "text_embeds": jnp.concatenate([clip.pooled for clip in clips], axis=-1),
        }

    def context(self, embedded: Embedded, batch: Batch) -> Context:
        del batch
        states, pooled = (embedded[name] for name in ("encoder_hidden_states", "text_embeds"))
        return {"encoder_hidden_states": states, "pooled_projections": pooled}
