"""The vision tower of CLIP with its projection: ViT-B/32, L/14 and L/14-336 are configurations.

Pictures in, the features out that are compared with those of texts. Attributes are named as in the
published checkpoints, whose config.json has that of the text encoder and that of the tower inside.

Shape letters: B batch, S pixels of a side, L patches and the class token, D features.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from slam_jax.models import layers
from slam_jax.models.clip import CLIPEncoder, CLIPTextConfig, require_layers
from slam_jax.models.published_config import require, require_counts, require_kinds


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Configuration of `CLIPVisionModel`, with the keys and defaults of transformers."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        require_counts(self, "intermediate_size", "projection_dim", "image_size", "patch_size")
        require_layers(self)
        divides = self.image_size % self.patch_size == 0
        require(self, "patch_size", divides, "divisors of image_size")
        require_kinds(self)


def read_config(mapping: Mapping[str, Any]) -> tuple[CLIPTextConfig, CLIPVisionConfig]:
    """The two configs, both with a projection, of a whole CLIP's config.json.

    As in transformers, of the projections' widths there that of the whole counts, and keys that
    have no meaning for a frozen model are left alone.

    Raises:
        ValueError: it is not one of a whole CLIP, or has a value that is not supported.
    """
    if (model_type := mapping.get("model_type")) != "clip":
        raise ValueError(f"CLIP config: model_type = {model_type!r}, supported: 'clip'")
    parts = {}
    for name in ("text_config", "vision_config"):
        if not isinstance(mapping.get(name), Mapping):
            raise ValueError(f"CLIP config: {name} = {mapping.get(name)!r}, supported: an object")
        width = mapping.get("projection_dim", CLIPVisionConfig.projection_dim)
        parts[name] = {**mapping[name], "projection_dim": width}
    fields = CLIPVisionConfig.__dataclass_fields__.keys() & parts["vision_config"].keys()
    projecting = {"architectures": ["CLIPTextModelWithProjection"]}
    part = "vision_config"
    try:
        vision = CLIPVisionConfig(**{key: parts[part][key] for key in fields})
        part = "text_config"
        return CLIPTextConfig.from_dict(parts[part] | projecting), vision
    except ValueError as error:
        raise ValueError(f"{part}: {error}") from error


class CLIPVisionEmbeddings(nnx.Module):
    """Pictures [B, S, S, 3] to the class token and the patches, row by row, [B, L, D]."""

    def __init__(self, config, *, rngs):
        features, patch = config.hidden_size, config.patch_size
        count = (config.image_size // patch) ** 2
        self.class_embedding = nnx.Param(jnp.zeros(features))
        self.patch_embedding = nnx.Conv(
            3, features, (patch, patch), patch, padding="VALID", use_bias=False, rngs=rngs
        )
        self.position_embedding = nnx.Embed(count + 1, features, rngs=rngs)

    def __call__(self, images):
        patches = self.patch_embedding(images)
        batch, features = len(images), patches.shape[-1]
        first = jnp.broadcast_to(self.class_embedding[...], (batch, 1, features))
        tokens = jnp.concatenate([first, patches.reshape(batch, -1, features)], axis=1)
        return tokens + self.position_embedding.embedding[...][None]


class CLIPVisionTransformer(nnx.Module):
    """Embeddings, norm, encoder, and the norm of the class token: [B, S, S, 3] -> [B, D]."""

    def __init__(self, config, *, rngs):
        features, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = CLIPVisionEmbeddings(config, rngs=rngs)
        self.pre_layrnorm = layers.LayerNorm(features, eps, rngs=rngs)  # the published spelling
        self.encoder = CLIPEncoder(config, causal=False, rngs=rngs)
        self.post_layernorm = layers.LayerNorm(features, eps, rngs=rngs)

    def __call__(self, images):
        _, last = self.encoder(self.pre_layrnorm(self.embeddings(images)))
        return self.post_layernorm(last[:, 0])


class CLIPVisionModel(nnx.Module):
    """The vision tower: pictures -> projected features."""

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        self.vision_model = CLIPVisionTransformer(config, rngs=rngs)
        self.visual_projection = nnx.Linear(
            config.hidden_size, config.projection_dim, use_bias=False, rngs=rngs
        )

    def __call__(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B D"]:
        """The projected features, not of length 1.

        Args:
            images: RGB with CLIP's mean and deviation removed, `image_size` pixels a side.

        Returns:
            Features [B, projection_dim], float32.
        """
        return self.visual_projection(self.vision_model(images)).astype(jnp.float32)
