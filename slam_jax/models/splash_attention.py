"""Attention on TPUs by the Pallas kernel that comes with jax, whose scores stay on the chip.

It is FlashAttention (Dao et al. 2022) for TPUs: jax.experimental.pallas.ops.tpu.splash_attention.

Shape letters: B batch, L query tokens, S key tokens, H heads, D features of a head.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Tokens that the kernel has at a time: the first that needs the least filling. Of wide heads it has
# the fewer, for which there is room on all TPUs, in float32 and with the gradient too.
BLOCKS, WIDE = (512, 256), 256


def splash_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    interpret: bool = False,
) -> Float[Array, "B L H D"]:
    """As `models.attention.attention`; not causal.

    Args:
        q, k, v: queries, keys and values.
        interpret: step by step on any machine, to see what the kernel computes.

    Returns:
        Outputs in the dtype of q.
    """
    # Imported where it is needed: Pallas takes half a second.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, length, heads, features = q.shape
    keys = k.shape[1]
    blocks = BLOCKS[-1:] if features > WIDE else BLOCKS
    (queries, rows), (columns, block) = _filled(length, blocks), _filled(keys, blocks)
    # Not the kernel that has all gradients at once: it would round the queries' for each block of
    # keys, and leave their sum to XLA.
    sizes = kernels.BlockSizes(
        block_q=rows,
        block_kv=block,
        block_q_dkv=rows,
        block_kv_dkv=block,
        block_q_dq=rows,
        block_kv_dq=block,
    )
    attend: Callable[..., Any] = kernels.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((queries, columns))] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        interpret=interpret,
    )
    segments = None
    if columns > keys:  # the real tokens see each other only
        is_filling = jnp.arange(columns) >= keys
        segments = kernels.SegmentIds(jnp.zeros(queries, jnp.int32), is_filling.astype(jnp.int32))

    def of_heads(x, tokens):  # [B, H, tokens, D]
        return jnp.pad(x, ((0, 0), (0, tokens - x.shape[1]), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    q = (q * (1 / math.sqrt(features))).astype(q.dtype)
    arrays = of_heads(q, queries), of_heads(k, columns), of_heads(v, columns)
    out: Any = jax.vmap(lambda q, k, v: attend(q, k, v, segment_ids=segments))(*arrays)
    return out.transpose(0, 2, 1, 3)[:, :length]


def _filled(tokens: int, blocks: tuple[int, ...]) -> tuple[int, int]:
    """So many tokens filled up to whole blocks, and the block."""
    block = min(blocks, key=lambda block: (-tokens % block, -block))
    return tokens + -tokens % block, block
