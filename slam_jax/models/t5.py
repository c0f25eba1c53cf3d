"""The encoder of T5 v1.1 (Raffel et al. 2020, arXiv 1910.10683), the third text encoder of SD 3.

Token ids in, features of each token out. `T5Config` speaks the config.json of transformers and
attributes are named as in the published checkpoints; older and other T5s are refused by name.

Shape letters: B batch, L tokens, H heads, D features.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from slam_jax.models.layers import split_heads
from slam_jax.models.norms import RMSNorm
from slam_jax.models.published_config import require, require_counts, require_depths, require_kinds

# Keys that a config.json of transformers must have, with these values.
FIXED = {"architectures": ["T5EncoderModel"], "model_type": "t5", "feed_forward_proj": "gated-gelu"}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Configuration of `T5EncoderModel`, with the keys and defaults of transformers."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64  # features of a head
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128  # tokens; from there on all are in one bucket
    layer_norm_epsilon: float = 1e-6

    def __post_init__(self):
        counts = (field.name for field in dataclasses.fields(self))
        require_counts(self, *(name for name in counts if name != "layer_norm_epsilon"))
        require_depths(self, "num_layers")
        buckets, farthest = "relative_attention_num_buckets", "relative_attention_max_distance"
        require(self, buckets, getattr(self, buckets) % 4 == 0, "multiples of 4")
        exact = getattr(self, buckets) // 4
        require(self, farthest, getattr(self, farthest) > exact, f"more than {exact}")
        eps = self.layer_norm_epsilon
        ok = isinstance(eps, int | float) and eps > 0
        require(self, "layer_norm_epsilon", ok, "numbers above 0")
        require_kinds(self)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> "T5Config":
        """The config of a transformers config.json.

        Of its other keys those in FIXED count; what transformers writes for decoders and for
        training has no meaning for a frozen encoder.

        Raises:
            ValueError: another T5, or a value that is not supported.
        """
        for key, supported in FIXED.items():
            if (value := mapping.get(key)) != supported:
                raise ValueError(f"T5 config: {key} = {value!r}, supported: {supported!r}")
        return cls(**{key: mapping[key] for key in cls.__dataclass_fields__ if key in mapping})

    def to_dict(self) -> dict[str, Any]:
        """A config.json for transformers; `from_dict` reads it back."""
        return {**FIXED, **dataclasses.asdict(self)}


def buckets_of_distances(length: int, config: T5Config) -> Int[np.ndarray, "L L"]:
    """The bucket of each query and key by how far the key is behind the query, or before it.

    A half of the buckets is for keys behind. Of each half one half is for one distance each, the
    other for distances that grow geometrically, and the last for all from max_distance on.

    Args:
        length: of the texts, in tokens.
        config: of the encoder.

    Returns:
        Bucket numbers [L queries, L keys].
    """
    half = config.relative_attention_num_buckets // 2
    exact, farthest = half // 2, config.relative_attention_max_distance
    behind = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(behind)
    growth = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    far = exact + (growth / np.float32(math.log(farthest / exact)) * (half - exact)).astype(int)
    bucket = np.where(distance < exact, distance, np.minimum(far, half - 1))
    return bucket + half * (behind > 0)


class T5Attention(nnx.Module):
    """Multi-head attention of all tokens to all [B, L, D], with a bias and without scaling."""

    def __init__(self, config, has_bias, *, rngs):
        features, inner = config.d_model, config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.q = nnx.Linear(features, inner, use_bias=False, rngs=rngs)
        self.k = nnx.Linear(features, inner, use_bias=False, rngs=rngs)
        self.v = nnx.Linear(features, inner, use_bias=False, rngs=rngs)
        self.o = nnx.Linear(inner, features, use_bias=False, rngs=rngs)
        if has_bias:  # of the first layer, whose bias is that of all
            buckets = config.relative_attention_num_buckets
            self.relative_attention_bias = nnx.Embed(buckets, config.num_heads, rngs=rngs)

    def bias(self, length, config):
        """What is added to the scores of a query and a key for their distance, [1, H, L, L]."""
        table = self.relative_attention_bias.embedding[...].astype(jnp.float32)
        return table[buckets_of_distances(length, config)].transpose(2, 0, 1)[None]

    def __call__(self, x, bias, mask):
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        out = jax.nn.dot_product_attention(
            q, k, v, bias=bias, mask=mask, scale=1.0, implementation="xla"
        )
        return self.o(out.reshape(*x.shape[:2], -1))


class T5LayerSelfAttention(nnx.Module):
    """Pre-norm attention with a skip around it."""

    def __init__(self, config, has_bias, *, rngs):
        self.SelfAttention = T5Attention(config, has_bias, rngs=rngs)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon, rngs=rngs)

    def __call__(self, x, bias, mask):
        return x + self.SelfAttention(self.layer_norm(x), bias, mask)


class T5GatedMLP(nnx.Module):
    """Linear layers, one of them gated by the GELU of another, [B, L, D] -> [B, L, D]."""

    def __init__(self, config, *, rngs):
        features, inner = config.d_model, config.d_ff
        self.wi_0 = nnx.Linear(features, inner, use_bias=False, rngs=rngs)
        self.wi_1 = nnx.Linear(features, inner, use_bias=False, rngs=rngs)
        self.wo = nnx.Linear(inner, features, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))


class T5LayerFF(nnx.Module):
    """Pre-norm MLP with a skip around it."""

    def __init__(self, config, *, rngs):
        self.DenseReluDense = T5GatedMLP(config, rngs=rngs)  # the published name, of the first T5
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon, rngs=rngs)

    def __call__(self, x):
        return x + self.DenseReluDense(self.layer_norm(x))


class T5Block(nnx.Module):
    """Attention and MLP."""

    def __init__(self, config, has_bias, *, rngs):
        attention = T5LayerSelfAttention(config, has_bias, rngs=rngs)
        self.layer: nnx.List[Any] = nnx.List([attention, T5LayerFF(config, rngs=rngs)])

    def __call__(self, x, bias, mask):
        attention, feed_forward = self.layer
        return feed_forward(attention(x, bias, mask))


class T5Stack(nnx.Module):
    """Blocks and final norm."""

    def __init__(self, config, *, rngs):
        self.config = config
        self.block = nnx.List(
            [T5Block(config, i == 0, rngs=rngs) for i in range(config.num_layers)]
        )
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon, rngs=rngs)

    def __call__(self, x, mask):
        bias = self.block[0].layer[0].SelfAttention.bias(x.shape[1], self.config)
        for block in self.block:
            x = block(x, bias, mask)
        return self.final_layer_norm(x)


class T5EncoderModel(nnx.Module):
    """The text encoder: token ids -> features."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.shared = nnx.Embed(config.vocab_size, config.d_model, rngs=rngs)
        self.encoder = T5Stack(config, rngs=rngs)

    def __call__(
        self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B L D"]:
        """Encodes texts; computes in the parameters' dtype, returns float32.

        Args:
            tokens: ids [B, L] of text, end and padding; an id beyond the vocabulary gives NaN.
            mask: the tokens that are seen [B, L]; None, as in SD 3: all, the padding too.

        Returns:
            Features of the tokens [B, L, d_model].
        """
        x = jnp.take(self.shared.embedding[...], tokens, axis=0)
        seen = None if mask is None else mask[:, None, None, :]
        return self.encoder(x, seen).astype(jnp.float32)
