"""The blocks of MMDiT and MMDiT-X (mmdit.py), with the attribute names of diffusers.

`config` is an `SD3Config`. Shape letters: B batch, N patches, L text tokens, D features, H heads.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from slam_jax.models import layers
from slam_jax.models.attention import attention
from slam_jax.models.norms import LayerNorm, RMSNorm

EPS = 1e-6  # of all norms


class AdaptiveNorm(nnx.Module):
    """Tokens without mean and scale [B, L, D]; and vectors [B, 1, D] that are made of the time."""

    def __init__(self, features, vectors, *, rngs):
        self.vectors = vectors
        self.linear = nnx.Linear(features, vectors * features, rngs=rngs)
        self.norm = LayerNorm(features, EPS, affine=False, rngs=rngs)

    def __call__(self, x, temb):
        vectors = self.linear(jax.nn.silu(temb))[:, None, :]
        return self.norm(x), jnp.split(vectors, self.vectors, axis=-1)


def modulated(x, shift, scale):
    """Tokens [B, L, D] behind an adaptive norm, with two of its vectors."""
    return x * (1 + scale) + shift


class SelfAttention(layers.Attention):
    """Multi-head attention of tokens to themselves [B, L, D]."""

    def __init__(self, config, *, rngs):
        width = config.width
        super().__init__(width, width, config.num_attention_heads, bias=True, rngs=rngs)
        self.norm_q, self.norm_k = (_head_norm(config, rngs) for _ in range(2))

    def __call__(self, x):
        out = attention(*self._projected(x), self.execution.attention)
        return self.to_out[0](out.reshape(x.shape))

    def _projected(self, x):
        """Queries, keys and values of each head [B, L, H, D / H]."""
        linear = self.to_q, self.to_k, self.to_v
        return _of_heads(x, self.heads, linear, (self.norm_q, self.norm_k))


def _head_norm(config, rngs):
    return RMSNorm(config.attention_head_dim, EPS, rngs=rngs) if config.qk_norm else None


def _of_heads(x, heads, linear, norms):
    q, k, v = (layers.split_heads(layer(x), heads) for layer in linear)
    q, k = (y if norm is None else norm(y) for y, norm in zip((q, k), norms, strict=True))
    return q, k, v


class JointAttention(SelfAttention):
    """Attention of patches [B, N, D] and text tokens [B, L, D] to all of both.

    Where `is_last` the text tokens do not ask: nothing is made of their answers. The last text
    token stands there `repeats` times.
    """

    def __init__(self, config, is_last, *, rngs):
        super().__init__(config, rngs=rngs)
        width = config.width
        self.add_q_proj = nnx.Linear(width, width, rngs=rngs)
        self.add_k_proj = nnx.Linear(width, width, rngs=rngs)
        self.add_v_proj = nnx.Linear(width, width, rngs=rngs)
        self.to_add_out = None if is_last else nnx.Linear(width, width, rngs=rngs)
        self.norm_added_q, self.norm_added_k = (_head_norm(config, rngs) for _ in range(2))

    def __call__(self, x, context, repeats=1):
        """Returns what patches and text tokens get; None for these where `is_last`."""
        linear = self.add_q_proj, self.add_k_proj, self.add_v_proj
        norms = self.norm_added_q, self.norm_added_k
        of_x, added = self._projected(x), _of_heads(context, self.heads, linear, norms)
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(of_x, added, strict=True))
        patches, width = x.shape[1:]
        q = of_x[0] if self.to_add_out is None else q
        out = attention(q, k, v, self.execution.attention, repeats=repeats)
        out = out.reshape(*out.shape[:2], width)
        new = self.to_out[0](out[:, :patches])
        return new, None if self.to_add_out is None else self.to_add_out(out[:, patches:])


class JointTransformerBlock(nnx.Module):
    """Joint attention and feed-forwards, all behind adaptive norms and before gates.

    The last block makes nothing of the text; a dual one has a second attention of the patches.
    """

    def __init__(self, config, index, *, rngs):
        width, is_last = config.width, index == config.num_layers - 1
        is_dual = index in config.dual_attention_layers
        self.norm1 = AdaptiveNorm(width, 9 if is_dual else 6, rngs=rngs)
        self.norm1_context = AdaptiveNorm(width, 2 if is_last else 6, rngs=rngs)
        self.attn = JointAttention(config, is_last, rngs=rngs)
        self.attn2 = SelfAttention(config, rngs=rngs) if is_dual else None
        self.norm2 = LayerNorm(width, EPS, affine=False, rngs=rngs)
        self.ff = layers.FeedForward(width, layers.GELU, rngs=rngs)
        self.ff_context = None if is_last else layers.FeedForward(width, layers.GELU, rngs=rngs)

    def __call__(self, x, context, temb, repeats=1):
        """Returns new patches and text tokens; None for these in the last block."""
        h, of_x = self.norm1(x, temb)
        h_context, of_context = self.norm1_context(context, temb)
        # Two alone are published in the other order.
        shift, scale = of_context[1::-1] if self.ff_context is None else of_context[:2]
        h_context = modulated(h_context, shift, scale)
        new, new_context = self.attn(modulated(h, *of_x[:2]), h_context, repeats)
        x = x + of_x[2] * new
        if self.attn2 is not None:
            shift, scale, gate = of_x[6:]
            x = x + gate * self.attn2(modulated(h, shift, scale))
        x = self._fed(x, self.ff, *of_x[3:6])
        if new_context is None or self.ff_context is None:
            return x, None
        context = context + of_context[2] * new_context
        return x, self._fed(context, self.ff_context, *of_context[3:])

    def _fed(self, x, feed_forward, shift, scale, gate):
        # The norm has no weights: it is that of the text tokens, too.
        return x + gate * feed_forward(modulated(self.norm2(x), shift, scale))
