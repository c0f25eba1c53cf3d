"""DINOv2: a vision transformer whose class token after the last norm FD-DINOv2 compares.

Attributes are named as in transformers; its layers are CLIP's, each with a scale for the features
that it adds. Trained on pictures of `image_size` pixels a side, it takes others: the embeddings of
the positions are interpolated.

Shape letters: B batch, S pixels of a side, N patches of a side, L patches and the class token,
D features.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from slam_jax.models import layers
from slam_jax.models.clip import CLIPMLP, CLIPAttention, require_layers
from slam_jax.models.published_config import require, require_counts

CUBIC = -0.75  # torch's kernel
OFFSET = 0.1  # of patches, see `interpolation`


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
    """Configuration of `Dinov2Model`, with the keys and defaults of transformers."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 14
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False  # the giant's

    def __post_init__(self):
        require_counts(self, "mlp_ratio", "image_size", "patch_size")
        require_layers(self)
        require(self, "qkv_bias", self.qkv_bias, "True")
        require(self, "use_swiglu_ffn", not self.use_swiglu_ffn, "False")
        divides = self.image_size % self.patch_size == 0
        require(self, "patch_size", divides, "divisors of image_size")

    @property
    def intermediate_size(self) -> int:
        """Features between the two layers of an MLP."""
        return self.hidden_size * self.mlp_ratio

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> "Dinov2Config":
        """The config of a config.json; of its keys those count that are fields here.

        Raises:
            ValueError: another network's, or a value that is not supported.
        """
        if (model_type := mapping.get("model_type")) != "dinov2":
            raise ValueError(f"DINOv2 config: model_type = {model_type!r}, supported: 'dinov2'")
        return cls(**{key: mapping[key] for key in cls.__dataclass_fields__ if key in mapping})


def interpolation(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The matrix by which `old` values along a line become `new` ones, bicubic as torch does it.

    The step is old / (new + 0.1), as in Facebook's own code and so in the published FD-DINOv2;
    transformers takes old / new.
    """
    places = (np.arange(new) + 0.5) * old / (new + OFFSET) - 0.5
    matrix = np.zeros((new, old))
    for row, place in enumerate(places):
        first = int(np.floor(place)) - 1
        for column in range(first, first + 4):
            distance = abs(place - column)
            weight = (
                (CUBIC + 2) * distance**3 - (CUBIC + 3) * distance**2 + 1
                if distance <= 1
                else CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
            )
            matrix[row, np.clip(column, 0, old - 1)] += weight
    return matrix.astype(np.float32)


class Dinov2PatchEmbeddings(nnx.Module):
    """Pictures [B, S, S, 3] to features of their patches [B, N, N, D]."""

    def __init__(self, config, *, rngs):
        patch = config.patch_size
        self.projection = nnx.Conv(
            3, config.hidden_size, (patch, patch), patch, padding="VALID", rngs=rngs
        )

    def __call__(self, images):
        return self.projection(images)


class Dinov2Embeddings(nnx.Module):
    """Pictures to the class token and the patches, row by row, [B, L, D]."""

    def __init__(self, config, *, rngs):
        features, self.side = config.hidden_size, config.image_size // config.patch_size
        self.cls_token = nnx.Param(jnp.zeros((1, 1, features)))
        self.position_embeddings = nnx.Param(jnp.zeros((1, self.side**2 + 1, features)))
        self.patch_embeddings = Dinov2PatchEmbeddings(config, rngs=rngs)

    def __call__(self, images):
        patches = self.patch_embeddings(images)
        batch, side, _, features = patches.shape
        first = jnp.broadcast_to(self.cls_token[...], (batch, 1, features))
        tokens = jnp.concatenate([first, patches.reshape(batch, -1, features)], axis=1)
        return tokens + self._positions(side)

    def _positions(self, side):
        """The embeddings of the class token and of `side` x `side` patches, [1, L, D]."""
        table = self.position_embeddings[...]
        if side == self.side:
            return table
        grid = table[0, 1:].reshape(self.side, self.side, -1)
        matrix = interpolation(self.side, side)
        grid = jnp.einsum("yh,xw,hwd->yxd", matrix, matrix, grid)
        return jnp.concatenate([table[:, :1], grid.reshape(1, side**2, -1)], axis=1)


class Dinov2LayerScale(nnx.Module):
    """Features by a factor each."""

    def __init__(self, features):
        self.lambda1 = nnx.Param(jnp.ones(features))

    def __call__(self, x):
        return x * self.lambda1[...].reshape(1, 1, -1)


class Dinov2Layer(nnx.Module):
    """Self-attention and an MLP, both pre-norm and scaled, [B, L, D] -> [B, L, D]."""

    def __init__(self, config, *, rngs):
        features, eps = config.hidden_size, config.layer_norm_eps
        self.norm1 = layers.LayerNorm(features, eps, rngs=rngs)
        self.attention = CLIPAttention(
            features, config.num_attention_heads, causal=False, rngs=rngs
        )
        self.layer_scale1 = Dinov2LayerScale(features)
        self.norm2 = layers.LayerNorm(features, eps, rngs=rngs)
        self.mlp = CLIPMLP(config, rngs=rngs)
        self.layer_scale2 = Dinov2LayerScale(features)

    def __call__(self, x):
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class Dinov2Encoder(nnx.Module):
    """The stack of layers, [B, L, D] -> [B, L, D]."""

    def __init__(self, config, *, rngs):
        self.layer = nnx.List(
            [Dinov2Layer(config, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )

    def __call__(self, x):
        for layer in self.layer:
            x = layer(x)
        return x


class Dinov2Model(nnx.Module):
    """Pictures to the class token after the last norm."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        self.embeddings = Dinov2Embeddings(config, rngs=rngs)
        self.encoder = Dinov2Encoder(config, rngs=rngs)
        self.layernorm = layers.LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B D"]:
        """The features.

        Args:
            images: RGB with ImageNet's mean and deviation removed; S is a multiple of `patch_size`.

        Returns:
            Features [B, hidden_size], float32.
        """
        return self.layernorm(self.encoder(self.embeddings(images))[:, 0]).astype(jnp.float32)
