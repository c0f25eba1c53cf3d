"""The transformer of Stable Diffusion 3 and 3.5: MMDiT (Esser et al. 2024, arXiv 2403.03206).

Noisy latents, continuous times and text features in, a prediction of the latents' shape out.
Patches and text tokens each have weights of their own, and attend to all of both. MMDiT-X, that of
SD 3.5 medium, has a second attention of the patches alone in some blocks, and norms of queries and
keys. `SD3Config` speaks the config.json of diffusers and attributes are named as in its
checkpoints; whatever else such a config can ask for is refused by name.

Shape letters: B batch, H height, W width, C channels, N patches, L text tokens, D features.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from slam_jax.models import layers
from slam_jax.models.mmdit_blocks import AdaptiveNorm, JointTransformerBlock, modulated
from slam_jax.models.published_config import (
    PublishedConfig,
    require,
    require_counts,
    require_depths,
    require_kinds,
)
from slam_jax.models.remat import remat_named

PATCH = 2  # latents along a side of a patch
TIME_FEATURES = 256  # sines and cosines of a time
PLACES = "pos_embed.pos_embed"  # path of the features of places, which are no weights


@dataclasses.dataclass(frozen=True)
class SD3Config(PublishedConfig):
    """Configuration of `SD3Transformer2DModel`, with the keys and defaults of diffusers."""

    CLASS = "SD3Transformer2DModel"
    FIXED = {"patch_size": PATCH}

    sample_size: int = 128  # of the latents it was trained on; the unit of `position_features`
    in_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096  # features of the text tokens
    caption_projection_dim: int = 1152  # and what becomes of them: the width of the network
    pooled_projection_dim: int = 2048  # features of a text as a whole
    out_channels: int = 16
    pos_embed_max_size: int = 96  # patches along a side, at most
    dual_attention_layers: tuple[int, ...] = ()  # the blocks with a second attention
    qk_norm: str | None = None  # "rms_norm": of the queries and keys of each head

    def __post_init__(self):
        others = ("caption_projection_dim", "dual_attention_layers", "qk_norm")
        require_counts(self, *(f.name for f in dataclasses.fields(self) if f.name not in others))
        require_depths(self, "num_layers")
        ok = self.width % 4 == 0
        require(self, "attention_head_dim", ok, "those of which the width is a multiple of 4")
        ok = self.caption_projection_dim == self.width
        of_heads = "num_attention_heads times attention_head_dim"
        require(self, "caption_projection_dim", ok, f"{self.width}, {of_heads}")
        dual, last = self.dual_attention_layers, self.num_layers - 1
        ok = isinstance(dual, tuple) and all(type(i) is int and 0 <= i <= last for i in dual)
        require(self, "dual_attention_layers", ok, f"numbers of blocks, 0 to {last}")
        require(self, "qk_norm", self.qk_norm in (None, "rms_norm"), "None and 'rms_norm'")
        require_kinds(self)

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.num_attention_heads * self.attention_head_dim


def position_features(config: SD3Config) -> Float[np.ndarray, "1 N D"]:
    """Sines and cosines of each patch's column, then of its row, on the grid of all places.

    Places are counted in patches of the size that the model was trained on, which the whole grid
    is stretched over.

    Args:
        config: of the transformer.

    Returns:
        Features [1, pos_embed_max_size^2, D], row by row.
    """
    size, quarter = config.pos_embed_max_size, config.width // 4
    unit = np.float32(size / (config.sample_size // PATCH))
    places = np.arange(size, dtype=np.float32) / unit
    waves = np.outer(places.astype(np.float64), 10000.0 ** (-np.arange(quarter) / quarter))
    line = np.hstack([np.sin(waves), np.cos(waves)]).astype(np.float32)
    shape = (size, size, 2 * quarter)
    columns, rows = (np.broadcast_to(x, shape) for x in (line[None], line[:, None]))
    return np.concatenate([columns, rows], axis=-1).reshape(1, size**2, -1)


class PatchEmbed(nnx.Module):
    """Latents [B, H, W, C] to patches [B, N, D], row by row, with the features of their places.

    Published files have these features, which is why they are among the arrays here; they are no
    weights, and are not trained. A smaller picture has the places in the middle.
    """

    def __init__(self, config, *, rngs):
        self.max_size = size = config.pos_embed_max_size
        self.proj = layers.Conv(
            config.in_channels, config.width, PATCH, stride=PATCH, padding=(0, 0), rngs=rngs
        )
        self.pos_embed = nnx.Param(jnp.zeros((1, size**2, config.width)))

    def __call__(self, x):
        patches = self.proj(x)
        batch, height, width, features = patches.shape
        if max(height, width) > self.max_size:
            raise ValueError(
                f"SD3: {height} x {width} patches, pos_embed_max_size = {self.max_size}"
            )
        places = jax.lax.stop_gradient(self.pos_embed[...])
        places = places.reshape(1, self.max_size, self.max_size, features)
        top, left = ((self.max_size - side) // 2 for side in (height, width))
        places = places[:, top : top + height, left : left + width]
        patches = patches + places.astype(patches.dtype)
        return patches.reshape(batch, height * width, features)


class TimeTextEmbedding(nnx.Module):
    """Times [B] and pooled text [B, D_pooled] as one vector [B, D]."""

    def __init__(self, config, *, rngs):
        pooled, width = config.pooled_projection_dim, config.width
        self.timestep_embedder = layers.TimestepEmbedding(TIME_FEATURES, width, rngs=rngs)
        self.text_embedder = layers.TimestepEmbedding(pooled, width, rngs=rngs)

    def __call__(self, timesteps, pooled):
        waves = layers.timestep_embedding(timesteps, TIME_FEATURES).astype(pooled.dtype)
        return self.timestep_embedder(waves) + self.text_embedder(pooled)


class SD3Transformer2DModel(nnx.Module):
    """The denoiser: (x_t, t, text) -> prediction of x_t's shape."""

    def __init__(self, config: SD3Config, *, rngs: nnx.Rngs):
        width, blocks = config.width, range(config.num_layers)
        self.config = config
        self.pos_embed = PatchEmbed(config, rngs=rngs)
        self.time_text_embed = TimeTextEmbedding(config, rngs=rngs)
        self.context_embedder = nnx.Linear(config.joint_attention_dim, width, rngs=rngs)
        self.transformer_blocks = nnx.List(
            [JointTransformerBlock(config, index, rngs=rngs) for index in blocks]
        )
        self.norm_out = AdaptiveNorm(width, 2, rngs=rngs)
        self.proj_out = nnx.Linear(width, PATCH**2 * config.out_channels, rngs=rngs)

    @staticmethod
    def constants(config: SD3Config) -> dict[str, np.ndarray]:
        """The arrays that `functional.init` does not draw, by their dotted paths."""
        return {PLACES: position_features(config)}

    def __call__(
        self,
        sample: Float[Array, "B H W C"],
        timesteps: Float[Array, " B"],
        encoder_hidden_states: Float[Array, "B L D_text"],
        pooled_projections: Float[Array, "B D_pooled"],
        remat: str = "none",
        repeats: int = 1,
    ) -> Float[Array, "B H W C_out"]:
        """Predicts from noisy latents; computes in the parameters' dtype, returns float32.

        Args:
            sample: noisy latents [B, H, W, in_channels]; of an odd side the last row or column
                is left out, as in diffusers.
            timesteps: continuous times [B], in training steps.
            encoder_hidden_states: text tokens [B, L, joint_attention_dim].
            pooled_projections: features of the texts [B, pooled_projection_dim].
            remat: what the backward pass computes again, a name in `models.remat`.
            repeats: how often the last text token stands there. Tokens that begin the same stay
                the same, as they have no places: one is computed for all.

        Returns:
            Prediction [B, H, W, out_channels], float32, with even H and W.

        Raises:
            ValueError: more patches along a side than pos_embed_max_size; or another name for
                remat.
        """
        dtype, wrap = self.context_embedder.kernel.dtype, remat_named(remat)
        x = self.pos_embed(sample.astype(dtype))
        temb = self.time_text_embed(timesteps, pooled_projections.astype(dtype))
        context = self.context_embedder(encoder_hidden_states.astype(dtype))
        for block in self.transformer_blocks:
            x, context = wrap(partial(block, repeats=repeats))(x, context, temb)
        x, (scale, shift) = self.norm_out(x, temb)
        patches = self.proj_out(modulated(x, shift, scale)).astype(jnp.float32)
        rows, columns = (side // PATCH for side in sample.shape[1:3])
        patches = patches.reshape(-1, rows, columns, PATCH, PATCH, self.config.out_channels)
        # The rows of a patch behind its row among the patches; columns alike.
        maps = patches.transpose(0, 1, 3, 2, 4, 5)
        return maps.reshape(-1, PATCH * rows, PATCH * columns, self.config.out_channels)
