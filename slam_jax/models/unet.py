"""The conditional UNet of Stable Diffusion; SD 1.5, SD 2.1 and SDXL are configurations of it.

Noisy latents, continuous times and text features in, a prediction of the latents' shape out.
`UNetConfig` speaks the config.json of diffusers and attributes are named as in its checkpoints;
whatever else a diffusers UNet can be told is refused by name.

Shape letters: B batch, H height, W width, C channels, L tokens, D features.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from slam_jax.models import layers
from slam_jax.models.published_config import (
    PublishedConfig,
    require,
    require_depths,
    require_kinds,
    require_side,
)
from slam_jax.models.remat import remat_named

# Keys of diffusers' config that have one supported value, which is the default there too.
# fmt: off
FIXED = {
    "act_fn": "silu", "mid_block_type": "UNetMidBlock2DCrossAttn", "attention_type": "default",
    "resnet_time_scale_shift": "default", "time_embedding_type": "positional",
    "conv_in_kernel": 3, "conv_out_kernel": 3, "downsample_padding": 1, "dropout": 0.0,
    "mid_block_scale_factor": 1, "resnet_out_scale_factor": 1, "addition_embed_type_num_heads": 64,
    "center_input_sample": False, "class_embeddings_concat": False, "dual_cross_attention": False,
    "only_cross_attention": False, "resnet_skip_time_act": False,
    "class_embed_type": None, "cross_attention_norm": None, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "mid_block_only_cross_attention": None,
    "num_attention_heads": None, "num_class_embeds": None,
    "reverse_transformer_layers_per_block": None, "time_embedding_act_fn": None,
    "time_embedding_dim": None, "timestep_post_act": None,
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class UNetConfig(PublishedConfig):
    """Configuration of `UNet2DConditionModel`, with the keys and defaults of diffusers.

    Tuples have one entry per level, the finest level first (up_block_types: the coarsest first).
    """

    CLASS = "UNet2DConditionModel"
    FIXED = FIXED

    # Of the latents it was trained on, or their height and width; a note for samplers.
    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2  # resnets per down block; up blocks have one more
    cross_attention_dim: int = 1280  # features of the context tokens
    attention_head_dim: int | tuple[int, ...] = 8  # NUMBER of heads: a misnomer diffusers keeps
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False  # around transformers, in place of 1x1 convolutions
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    addition_embed_type: str | None = None  # "text_time": pooled text and sizes join the time
    addition_time_embed_dim: int | None = None  # features per number of time_ids
    projection_class_embeddings_input_dim: int | None = None  # of pooled text and time_ids
    time_cond_proj_dim: int | None = None  # features of timestep_cond; None: no such input
    upcast_attention: bool | None = False  # a note for others: scores are always float32 here

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name, types in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            value = getattr(self, name)
            ok = len(value) == levels and set(value) <= types.keys()
            require(self, name, ok, f"{levels} (as block_out_channels) of {' and '.join(types)}")
        for name in ("attention_head_dim", "transformer_layers_per_block"):
            value = getattr(self, name)
            several = isinstance(value, tuple)
            ok = [type(v) for v in value] == [int] * levels if several else type(value) is int
            ok = ok and min(value if several else (value,)) > 0
            require(self, name, ok, f"one integer, or {levels} (as block_out_channels), above 0")
        for name in ("layers_per_block", "cross_attention_dim"):
            require(self, name, isinstance(getattr(self, name), int), "one integer for all levels")
        require_depths(self, "layers_per_block", "transformer_layers_per_block")
        require_side(self)
        added = self.addition_embed_type
        require(self, "addition_embed_type", added in (None, "text_time"), "None and 'text_time'")
        for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            ok = (getattr(self, name) is None) == (added is None)
            require(self, name, ok, "an integer if addition_embed_type is set, else None")
        require_kinds(self)
        require(self, "norm_eps", self.norm_eps > 0, "numbers above 0")

    @property
    def sides(self) -> tuple[int, ...] | None:
        """Height and width of the latents it was trained on; None: it does not say."""
        size = self.sample_size
        return (size, size) if isinstance(size, int) else size

    @property
    def temb_features(self) -> int:
        """Features of the time embedding."""
        return 4 * self.block_out_channels[0]


def _resnet(config, in_channels, out_channels, rngs):
    temb, groups, eps = config.temb_features, config.norm_num_groups, config.norm_eps
    return layers.ResnetBlock2D(in_channels, out_channels, temb, groups, eps, rngs=rngs)


class DownBlock2D(nnx.Module):
    """Resnets at one level, then a downsampler unless the level is the coarsest."""

    cross_attention = False

    def __init__(self, config, level, *, rngs):
        channels, n = config.block_out_channels, config.layers_per_block
        out = channels[level]
        inputs = [channels[max(level - 1, 0)]] + [out] * (n - 1)
        self.resnets = nnx.List([_resnet(config, c, out, rngs) for c in inputs])
        if self.cross_attention:
            transformers = [layers.Transformer2DModel(config, level, rngs=rngs) for _ in range(n)]
            self.attentions = nnx.List(transformers)
        is_coarsest = level == len(channels) - 1
        self.downsamplers = nnx.List([] if is_coarsest else [layers.Downsample2D(out, rngs=rngs)])

    def __call__(self, x, temb, context, remat):
        """Returns the new map and all maps made on the way, which the up blocks will take."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = remat(resnet)(x, temb)
            if self.cross_attention:
                x = self.attentions[i](x, context, remat)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x, skips


class CrossAttnDownBlock2D(DownBlock2D):
    """DownBlock2D with a transformer after each resnet."""

    cross_attention = True


class UNetMidBlock2DCrossAttn(nnx.Module):
    """Resnet, transformer, resnet at the coarsest level."""

    def __init__(self, config, *, rngs):
        channels = config.block_out_channels[-1]
        self.resnets = nnx.List([_resnet(config, channels, channels, rngs) for _ in range(2)])
        self.attentions = nnx.List([layers.Transformer2DModel(config, -1, rngs=rngs)])

    def __call__(self, x, temb, context, remat):
        x = remat(self.resnets[0])(x, temb)
        x = self.attentions[0](x, context, remat)
        return remat(self.resnets[1])(x, temb)


def _join(resnet, x, skip, temb):
    return resnet(jnp.concatenate([x, skip], axis=-1), temb)


class UpBlock2D(nnx.Module):
    """Resnets at one level, each joined by a map of the way down, then an upsampler to the next."""

    cross_attention = False

    def __init__(self, config, level, *, rngs):
        channels, n = config.block_out_channels, config.layers_per_block + 1
        out = channels[level]
        inputs = [channels[min(level + 1, len(channels) - 1)]] + [out] * (n - 1)
        skips = [out] * (n - 1) + [channels[max(level - 1, 0)]]
        widths = [c + skip for c, skip in zip(inputs, skips, strict=True)]
        self.resnets = nnx.List([_resnet(config, c, out, rngs) for c in widths])
        if self.cross_attention:
            transformers = [layers.Transformer2DModel(config, level, rngs=rngs) for _ in range(n)]
            self.attentions = nnx.List(transformers)
        self.upsamplers = nnx.List([] if level == 0 else [layers.Upsample2D(out, rngs=rngs)])

    def __call__(self, x, skips, temb, context, remat):
        """Returns the new map; pops the maps it joins off the end of `skips`."""
        for i, resnet in enumerate(self.resnets):
            # Joined inside: what is kept are two maps that others keep too, and not a third.
            x = remat(partial(_join, resnet))(x, skips.pop(), temb)
            if self.cross_attention:
                x = self.attentions[i](x, context, remat)
        for upsample in self.upsamplers:
            x = upsample(x, size=skips[-1].shape[1:3])
        return x


class CrossAttnUpBlock2D(UpBlock2D):
    """UpBlock2D with a transformer after each resnet."""

    cross_attention = True


DOWN_BLOCKS = {block.__name__: block for block in (DownBlock2D, CrossAttnDownBlock2D)}
UP_BLOCKS = {block.__name__: block for block in (UpBlock2D, CrossAttnUpBlock2D)}


class UNet2DConditionModel(nnx.Module):
    """The denoiser: (x_t, t, text) -> prediction of x_t's shape."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        channels, groups = config.block_out_channels, config.norm_num_groups
        temb, cond = config.temb_features, config.time_cond_proj_dim
        down = enumerate(config.down_block_types)
        up = zip(reversed(range(len(channels))), config.up_block_types, strict=True)
        self.config = config
        self.conv_in = layers.Conv(config.in_channels, channels[0], rngs=rngs)
        self.time_embedding = layers.TimestepEmbedding(channels[0], temb, cond, rngs=rngs)
        if config.addition_embed_type is not None:
            features = config.projection_class_embeddings_input_dim
            self.add_embedding = layers.TimestepEmbedding(features, temb, rngs=rngs)
        self.down_blocks = nnx.List([DOWN_BLOCKS[name](config, i, rngs=rngs) for i, name in down])
        self.mid_block = UNetMidBlock2DCrossAttn(config, rngs=rngs)
        self.up_blocks = nnx.List([UP_BLOCKS[name](config, i, rngs=rngs) for i, name in up])
        self.conv_norm_out = layers.GroupNorm(channels[0], groups, config.norm_eps, rngs=rngs)
        self.conv_out = layers.Conv(channels[0], config.out_channels, rngs=rngs)

    def __call__(
        self,
        sample: Float[Array, "B H W C"],
        timesteps: Float[Array, " B"],
        encoder_hidden_states: Float[Array, "B L D"],
        timestep_cond: Float[Array, "B D_cond"] | None = None,
        added_cond: Mapping[str, Array] | None = None,
        remat: str = "none",
    ) -> Float[Array, "B H W C_out"]:
        """Predicts from noisy latents; computes in the parameters' dtype, returns float32.

        Args:
            sample: noisy latents [B, H, W, in_channels].
            timesteps: continuous times [B], in training steps.
            encoder_hidden_states: context tokens [B, L, cross_attention_dim].
            timestep_cond: joins the time features [B, time_cond_proj_dim], or None.
            added_cond: SDXL's "text_embeds" [B, D_pooled] and "time_ids" [B, 6], or None.
            remat: what the backward pass computes again, a name in `models.remat`.

        Returns:
            Prediction [B, H, W, out_channels], float32.

        Raises:
            ValueError: an input that this configuration needs and lacks, or does not take; or
                another name for remat.
        """
        dtype, wrap = self.conv_in.kernel.dtype, remat_named(remat)
        context = encoder_hidden_states.astype(dtype)
        temb = self._embed_time(timesteps, timestep_cond, added_cond, dtype)
        x = self.conv_in(sample.astype(dtype))
        skips = [x]
        for block in self.down_blocks:
            x, new_skips = block(x, temb, context, wrap)
            skips += new_skips
        x = self.mid_block(x, temb, context, wrap)
        for block in self.up_blocks:
            x = block(x, skips, temb, context, wrap)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x))).astype(jnp.float32)

    def _embed_time(self, timesteps, timestep_cond, added_cond, dtype):
        """Time, its condition and (SDXL) pooled text and sizes as one vector [B, D]."""
        config = self.config

        def sinusoids(t, dim):
            features = layers.timestep_embedding(t, dim, config.flip_sin_to_cos, config.freq_shift)
            return features.astype(dtype)

        if timestep_cond is not None:
            if config.time_cond_proj_dim is None:
                raise ValueError("UNet: timestep_cond given, but time_cond_proj_dim is None")
            timestep_cond = timestep_cond.astype(dtype)
        if (added_cond is None) != (config.addition_embed_type is None):
            raise ValueError("UNet: added_cond and addition_embed_type go together, one is None")
        features = sinusoids(timesteps, config.block_out_channels[0])
        temb = self.time_embedding(features, timestep_cond)
        if added_cond is not None:
            text = added_cond["text_embeds"].astype(dtype)
            ids = sinusoids(added_cond["time_ids"].reshape(-1), config.addition_time_embed_dim)
            features = jnp.concatenate([text, ids.reshape(text.shape[0], -1)], axis=-1)
            temb = temb + self.add_embedding(features)
        return temb
