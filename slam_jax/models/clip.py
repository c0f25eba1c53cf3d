"""The text encoder of CLIP; those of SD 1.5 (L), SD 2.1 (H) and SDXL (L, bigG) are configurations.

Token ids in, features of each token and of the whole text out. The vision tower (clip_vision.py) is
made of the same layers. `CLIPTextConfig` speaks the config.json of transformers and attributes are
named as in the published checkpoints.

Shape letters: B batch, L tokens, D features.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from slam_jax.models import layers
from slam_jax.models.attention import attention
from slam_jax.models.execution import Execution
from slam_jax.models.published_config import (
    require,
    require_counts,
    require_depths,
    require_kinds,
)

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
# Whether a model of the class named in "architectures" projects its pooled features.
PROJECTION_OF = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}


def require_layers(config: Any) -> None:
    """Refuses a config of which no layers can be made.

    Raises:
        ValueError: says what is supported.
    """
    activations = " and ".join(map(repr, ACTIVATIONS))
    require(config, "hidden_act", config.hidden_act in list(ACTIVATIONS), activations)
    require_counts(config, "hidden_size", "num_hidden_layers", "num_attention_heads")
    require_depths(config, "num_hidden_layers")
    eps = config.layer_norm_eps
    require(config, "layer_norm_eps", isinstance(eps, int | float) and eps > 0, "numbers above 0")
    divides = config.hidden_size % config.num_attention_heads == 0
    require(config, "num_attention_heads", divides, "divisors of hidden_size")


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Configuration of `CLIPTextModel`, with the keys and defaults of transformers."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int | None = 512  # features of the projected text, where there is a projection
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407  # 2, in old files, stands for the largest id of a text
    projection: bool = False  # "architectures" in a config.json

    def __post_init__(self):
        require(self, "eos_token_id", isinstance(self.eos_token_id, int), "one integer")
        require_counts(self, "vocab_size", "intermediate_size", "max_position_embeddings")
        require_layers(self)
        if self.projection:
            require_counts(self, "projection_dim")
        require_kinds(self)

    @classmethod
    def from_dict(cls, mapping: Mapping) -> "CLIPTextConfig":
        """The config of a transformers config.json.

        Of its keys only the fields here have a meaning for a text encoder that is frozen; the
        others, which transformers writes for every model, are left alone as transformers does.

        Raises:
            ValueError: a class or value that is not supported.
        """
        names = mapping.get("architectures") or ["CLIPTextModel"]
        if len(names) > 1 or names[0] not in PROJECTION_OF:
            supported = " or ".join(PROJECTION_OF)
            raise ValueError(f"CLIP config: architectures = {names!r}, supported: {supported}")
        values = {key: mapping[key] for key in cls.__dataclass_fields__ if key in mapping}
        return cls(**{**values, "projection": PROJECTION_OF[names[0]]})

    def to_dict(self) -> dict:
        """A config.json for transformers; `from_dict` reads it back."""
        values = dataclasses.asdict(self)
        projection = values.pop("projection")
        names = [name for name, projects in PROJECTION_OF.items() if projects == projection]
        start = {"bos_token_id": self.eos_token_id - 1}  # its place in CLIP's vocabularies
        return {"architectures": names, "model_type": "clip_text_model", **start, **values}


class TextFeatures(NamedTuple):
    """What a text encoder says about a batch of texts, all float32.

    Attributes:
        last_hidden_state: features of the tokens after the final norm [B, L, D].
        penultimate: features before the last layer, not normalised [B, L, D].
        pooled: features of the text, those at its end after the final norm [B, D]; projected
            where the model has a projection, [B, projection_dim].
    """

    last_hidden_state: Float[Array, "B L D"]
    penultimate: Float[Array, "B L D"]
    pooled: Float[Array, "B D"]


class CLIPTextEmbeddings(nnx.Module):
    """Tokens [B, L] to the sum of their embedding and that of their position [B, L, D]."""

    def __init__(self, config, *, rngs):
        features = config.hidden_size
        self.token_embedding = nnx.Embed(config.vocab_size, features, rngs=rngs)
        self.position_embedding = nnx.Embed(config.max_position_embeddings, features, rngs=rngs)

    def __call__(self, tokens):
        # nnx.Embed itself would answer in the dtype it was built with, not in its array's.
        positions = self.position_embedding.embedding[...][None, : tokens.shape[1]]
        return jnp.take(self.token_embedding.embedding[...], tokens, axis=0) + positions


class CLIPAttention(nnx.Module):
    """Multi-head attention of each token to all, or to itself and those before it where `causal`;
    [B, L, D] -> [B, L, D]."""

    def __init__(self, features, heads, causal, *, rngs):
        self.heads, self.causal = heads, causal
        self.execution = Execution()
        self.q_proj = nnx.Linear(features, features, rngs=rngs)
        self.k_proj = nnx.Linear(features, features, rngs=rngs)
        self.v_proj = nnx.Linear(features, features, rngs=rngs)
        self.out_proj = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, x):
        parts = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (layers.split_heads(y, self.heads) for y in parts)
        out = attention(q, k, v, self.execution.attention, self.causal)
        return self.out_proj(out.reshape(x.shape))


class CLIPMLP(nnx.Module):
    """Two linear layers around the activation, [B, L, D] -> [B, L, D]."""

    def __init__(self, config, *, rngs):
        self.activation = config.hidden_act
        self.fc1 = nnx.Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.fc2 = nnx.Linear(config.intermediate_size, config.hidden_size, rngs=rngs)

    def __call__(self, x):
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class CLIPEncoderLayer(nnx.Module):
    """Self-attention and an MLP, both pre-norm, [B, L, D] -> [B, L, D]."""

    def __init__(self, config, causal, *, rngs):
        features, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = layers.LayerNorm(features, eps, rngs=rngs)
        self.self_attn = CLIPAttention(features, config.num_attention_heads, causal, rngs=rngs)
        self.layer_norm2 = layers.LayerNorm(features, eps, rngs=rngs)
        self.mlp = CLIPMLP(config, rngs=rngs)

    def __call__(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config, causal, *, rngs):
        self.layers = nnx.List(
            [CLIPEncoderLayer(config, causal, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )

    def __call__(self, x):
        """Returns the input of the last layer and its output, both [B, L, D]."""
        *all_but_last, last = self.layers
        for layer in all_but_last:
            x = layer(x)
        return x, last(x)


class CLIPTextTransformer(nnx.Module):
    """Embeddings, encoder and final norm."""

    def __init__(self, config, *, rngs):
        features, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = CLIPTextEmbeddings(config, rngs=rngs)
        self.encoder = CLIPEncoder(config, causal=True, rngs=rngs)
        self.final_layer_norm = layers.LayerNorm(features, eps, rngs=rngs)

    def __call__(self, tokens):
        """Returns the features before the last layer and the normalised ones after it."""
        penultimate, last = self.encoder(self.embeddings(tokens))
        return penultimate, self.final_layer_norm(last)


class CLIPTextModel(nnx.Module):
    """The text encoder: token ids -> features."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.text_model = CLIPTextTransformer(config, rngs=rngs)
        if config.projection and config.projection_dim is not None:
            self.text_projection = nnx.Linear(
                config.hidden_size, config.projection_dim, use_bias=False, rngs=rngs
            )

    def __call__(self, tokens: Int[Array, "B L"]) -> TextFeatures:
        """Encodes texts; computes in the parameters' dtype, returns float32.

        Args:
            tokens: ids [B, L] of begin, text, end and padding, as the model's tokenizer makes
                them; an id beyond the vocabulary gives NaN.

        Returns:
            Features of the tokens and of the texts.

        Raises:
            ValueError: L exceeds max_position_embeddings.
        """
        length, limit = tokens.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise ValueError(f"CLIP: texts of {length} tokens, max_position_embeddings = {limit}")
        penultimate, last = self.text_model(tokens)
        pooled = last[jnp.arange(tokens.shape[0]), self._ends(tokens)]
        if self.config.projection:
            pooled = self.text_projection(pooled)
        return TextFeatures(*(x.astype(jnp.float32) for x in (last, penultimate, pooled)))

    def _ends(self, tokens):
        """Position of each text's first end token [B]; padding may be end tokens too.

        The first models were published with a wrong end token, 2; with it the end is where the
        largest id is, which their tokenizer's end token has.
        """
        eos = self.config.eos_token_id
        return jnp.argmax(tokens if eos == 2 else tokens == eos, axis=1)
