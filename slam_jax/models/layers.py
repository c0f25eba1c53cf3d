"""Building blocks of UNet, MMDiT and VAE: NHWC, with the attribute names of diffusers.

Names are an interface here: the path of an array, `down_blocks.0.resnets.1.conv1.kernel`, is its
key in a diffusers checkpoint up to the last word, which makes weight conversion one rule.

Every layer computes in the dtype of its parameters; norms and softmax reduce in float32.
Shape letters: B batch, H height, W width, C channels, L tokens, D features.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from slam_jax.models.attention import attention
from slam_jax.models.execution import Execution
from slam_jax.models.norms import GroupNorm, LayerNorm


def timestep_embedding(
    t: Float[Array, " B"], dim: int, flip_sin_to_cos: bool = True, freq_shift: float = 0
) -> Float[Array, "B D"]:
    """Sinusoidal features of continuous time, always in float32.

    Args:
        t: times [B] in training steps; fractions are welcome.
        dim: number of features D, even.
        flip_sin_to_cos: put the cosines first.
        freq_shift: frequency i is 10000^(-i / (D/2 - freq_shift)).

    Returns:
        Features [B, D].
    """
    half = dim // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = t.astype(jnp.float32)[:, None] * jnp.exp(-math.log(10000) * exponents)[None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([cos, sin] if flip_sin_to_cos else [sin, cos], axis=-1)


class Conv(nnx.Conv):
    """A square convolution [B, H, W, C_in] -> [B, H', W', C_out] with torch's padding.

    Torch pads both sides alike, unless told the zeros before and after; "SAME" does not when the
    stride is 2.
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, padding=None, *, rngs):
        pad = (kernel_size // 2, kernel_size // 2) if padding is None else padding
        super().__init__(
            in_channels,
            out_channels,
            (kernel_size, kernel_size),
            strides=stride,
            padding=(pad, pad),
            rngs=rngs,
        )

    def __call__(self, x):
        padded_alike = self.padding == ((1, 1), (1, 1))
        if self.kernel_size == (3, 3) and padded_alike and max(x.shape[1:3]) <= 2:
            return self._as_matrix(x)
        return super().__call__(x)

    def _as_matrix(self, x):
        """On maps of up to 2x2 every output sees every input: ten times faster as one matrix."""
        assert isinstance(self.strides, int) and self.bias is not None
        batch, height, width, _ = x.shape
        rows, columns = range(0, height, self.strides), range(0, width, self.strides)
        kernel = self.kernel[...]

        def seen_from(i, j):  # the part of the kernel that meets the map, [H, W, C_in, C_out]
            return kernel[1 - i :, 1 - j :][:height, :width]

        matrix = jnp.stack(
            [jnp.stack([seen_from(i, j) for j in columns], axis=3) for i in rows], axis=3
        )  # [H, W, C_in, H', W', C_out]
        y = x.reshape(batch, -1) @ matrix.reshape(x[0].size, -1)
        return y.reshape(batch, *matrix.shape[3:]) + self.bias.reshape(1, 1, 1, -1)


class TimestepEmbedding(nnx.Module):
    """MLP [B, D_in] -> [B, D_out], with an optional condition added to its input.

    `functional.init` starts the condition's projection at zero: a pretrained network that gains
    one is unchanged.
    """

    def __init__(self, in_features, out_features, cond_features=None, *, rngs):
        self.linear_1 = nnx.Linear(in_features, out_features, rngs=rngs)
        self.linear_2 = nnx.Linear(out_features, out_features, rngs=rngs)
        if cond_features is not None:
            self.cond_proj = nnx.Linear(cond_features, in_features, use_bias=False, rngs=rngs)

    def __call__(self, x, condition=None):
        if condition is not None:
            x = x + self.cond_proj(condition)
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class ResnetBlock2D(nnx.Module):
    """Two convolutions with a time shift between them, [B, H, W, C_in] -> [B, H, W, C_out].

    With temb_features None there is no shift.
    """

    def __init__(self, in_channels, out_channels, temb_features, groups, eps, *, rngs):
        self.norm1 = GroupNorm(in_channels, groups, eps, rngs=rngs)
        self.conv1 = Conv(in_channels, out_channels, rngs=rngs)
        self.time_emb_proj = (
            None if temb_features is None else nnx.Linear(temb_features, out_channels, rngs=rngs)
        )
        self.norm2 = GroupNorm(out_channels, groups, eps, rngs=rngs)
        self.conv2 = Conv(out_channels, out_channels, rngs=rngs)
        needs_shortcut = in_channels != out_channels
        self.conv_shortcut = (
            Conv(in_channels, out_channels, kernel_size=1, rngs=rngs) if needs_shortcut else None
        )

    def __call__(self, x, temb=None):
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            assert temb is not None
            h = h + self.time_emb_proj(jax.nn.silu(temb))[:, None, None, :]
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nnx.Module):
    """Multi-head attention of x [B, L, D] to a context [B, L', D'] (to itself: pass x twice).

    `bias` is that of queries, keys and values; the output has one always.
    """

    def __init__(self, features, context_features, heads, bias=False, *, rngs):
        self.heads = heads
        self.execution = Execution()
        self.to_q = nnx.Linear(features, features, use_bias=bias, rngs=rngs)
        self.to_k = nnx.Linear(context_features, features, use_bias=bias, rngs=rngs)
        self.to_v = nnx.Linear(context_features, features, use_bias=bias, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(features, features, rngs=rngs)])

    def __call__(self, x, context):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (split_heads(y, self.heads) for y in (q, k, v))
        out = attention(q, k, v, self.execution.attention)
        return self.to_out[0](out.reshape(x.shape))


def split_heads(x, heads):
    """[B, L, H D] as [B, L, H, D]."""
    return x.reshape(*x.shape[:2], heads, -1)


class GEGLU(nnx.Module):
    """Linear layer gated by the exact GELU of its second half, [B, L, D] -> [B, L, D']."""

    def __init__(self, features, out_features, *, rngs):
        self.proj = nnx.Linear(features, 2 * out_features, rngs=rngs)

    def __call__(self, x):
        x, gate = jnp.split(self.proj(x), 2, axis=-1)
        return x * jax.nn.gelu(gate, approximate=False)


class GELU(nnx.Module):
    """Linear layer and the GELU that tanh approximates, [B, L, D] -> [B, L, D']."""

    def __init__(self, features, out_features, *, rngs):
        self.proj = nnx.Linear(features, out_features, rngs=rngs)

    def __call__(self, x):
        return jax.nn.gelu(self.proj(x), approximate=True)


class FeedForward(nnx.Module):
    """GEGLU or GELU to four times the width and back, [B, L, D] -> [B, L, D]."""

    def __init__(self, features, activation: Callable[..., Any] = GEGLU, *, rngs):
        inner = 4 * features
        # The gap keeps torch's indices, where net.1 is a dropout.
        self.net = nnx.List(
            [activation(features, inner, rngs=rngs), None, nnx.Linear(inner, features, rngs=rngs)]
        )

    def __call__(self, x):
        return self.net[2](self.net[0](x))  # pyright: ignore[reportOptionalCall]


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention to the context and a feed-forward, all pre-norm."""

    def __init__(self, features, context_features, heads, *, rngs):
        self.norm1 = LayerNorm(features, rngs=rngs)
        self.attn1 = Attention(features, features, heads, rngs=rngs)
        self.norm2 = LayerNorm(features, rngs=rngs)
        self.attn2 = Attention(features, context_features, heads, rngs=rngs)
        self.norm3 = LayerNorm(features, rngs=rngs)
        self.ff = FeedForward(features, rngs=rngs)

    def __call__(self, x, context):
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the pixels of a map [B, H, W, C], with a skip around them.

    `config` is a `UNetConfig`, `level` the index of its entries.
    """

    def __init__(self, config, level, *, rngs):
        channels = config.block_out_channels[level]
        heads, depth = config.attention_head_dim, config.transformer_layers_per_block
        heads = heads if isinstance(heads, int) else heads[level]
        depth = depth if isinstance(depth, int) else depth[level]

        def projection():
            if config.use_linear_projection:
                return nnx.Linear(channels, channels, rngs=rngs)
            return Conv(channels, channels, kernel_size=1, rngs=rngs)

        def block():
            features = config.cross_attention_dim
            return BasicTransformerBlock(channels, features, heads, rngs=rngs)

        self.norm = GroupNorm(channels, config.norm_num_groups, eps=1e-6, rngs=rngs)
        self.proj_in = projection()
        self.transformer_blocks = nnx.List([block() for _ in range(depth)])
        self.proj_out = projection()

    def __call__(self, x, context, remat):
        """With `remat` from `models.remat` around each part."""
        h = remat(self._tokens)(x)
        for block in self.transformer_blocks:
            h = remat(block)(h, context)
        return x + self.proj_out(h.reshape(x.shape))

    def _tokens(self, x):
        batch, height, width, channels = x.shape
        return self.proj_in(self.norm(x)).reshape(batch, height * width, channels)


class Downsample2D(nnx.Module):
    """Convolution with stride 2, [B, H, W, C] -> [B, H', W', C].

    With torch's padding H' = ceil(H / 2); padded after the last row and column only, as the VAE's
    are, H' = floor(H / 2).
    """

    def __init__(self, channels, padding=None, *, rngs):
        self.conv = Conv(channels, channels, stride=2, padding=padding, rngs=rngs)

    def __call__(self, x):
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Nearest-neighbour doubling of [B, H, W, C], to a given size if there is one; a convolution.

    Sizes come from the downward path, so they are 2 H or 2 H - 1 (2 W or 2 W - 1). In the odd case
    nearest-neighbour resizing drops the last row (column) of the doubled map.
    """

    def __init__(self, channels, *, rngs):
        self.conv = Conv(channels, channels, rngs=rngs)

    def __call__(self, x, size=None):
        height, width = (None, None) if size is None else size
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return self.conv(x[:, :height, :width])
