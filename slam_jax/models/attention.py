"""Attention by several implementations, picked per platform, shape and dtype.

    xla      jax.nn's, compiled by XLA: keeps the weights of all pairs of tokens
    cudnn    NVIDIA's kernel, which keeps none of them
    splash   a kernel for TPUs, which keeps none either
    chunked  tile by tile, which keeps none either; its tiles are those of CPUs
    auto     cudnn on NVIDIA's GPUs where it can run; splash on TPUs and chunked on CPUs, but for
             small shapes; else xla

The platform is what a program is lowered for, which jax.export may choose to be another one than
that of this machine; so a program may hold several implementations until then. One with splash
cannot be lowered for several platforms at once.

Shape letters: B batch, L query tokens, S key tokens, H heads, D features of a head.
"""

import functools
import math
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slam_jax.models.chunked_attention import chunked_attention
from slam_jax.models.splash_attention import splash_attention

# Scores up to which XLA's is as good: on a CPU as fast, and sooner compiled; on a TPU it has them
# on the chip. Of fewer keys, which the kernel for TPUs fills up, XLA's is better always.
FEW = {"cpu": 2**18, "tpu": 2**23}
MANY_KEYS = 1024
MOST_FEATURES = 512  # of a head, for which there is room on the chip
PLATFORMS = {"cudnn": "cuda", "splash": "tpu"}

# Other lengths are filled up with zeros and masked: jax refuses to differentiate odd ones, such as
# the 77 of captions, and cuDNN's gradients have been wrong where its tiles did not divide a length.
CUDNN_MULTIPLE = 64


@partial(jax.jit, static_argnames=("implementation", "is_causal", "repeats"))
def attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    implementation: str = "auto",
    is_causal: bool = False,
    repeats: int = 1,
) -> Float[Array, "B L H D"]:
    """softmax(q k^T / sqrt(D)) v for each head, with the softmax in float32.

    Where cudnn or splash is asked for and cannot run, xla computes, and a line on stderr says why;
    on platforms that are not theirs xla does so silently.

    Args:
        q, k, v: queries, keys and values.
        implementation: one of `execution.ATTENTION`.
        is_causal: a query sees the keys up to its own position only.
        repeats: how often the last key and value stand there.

    Returns:
        Outputs in the dtype of q.
    """
    names = _per_platform(implementation, (q, k, v), is_causal)
    compute = {
        platform: partial(_COMPUTE[name], is_causal=is_causal, repeats=repeats)
        for platform, name in names.items()
    }
    if len(compute) == 1:
        return compute["default"](q, k, v)
    return jax.lax.platform_dependent(q, k, v, **compute)


def _per_platform(implementation, arrays, is_causal):
    """Platform -> who computes there; "default" is any other, and alone where all do the same."""
    if implementation in ("xla", "chunked"):
        return {"default": implementation}
    q, k, _ = arrays
    reasons = {
        "cudnn": why_not_cudnn(*arrays, is_causal=is_causal),
        "splash": why_not_splash(q, is_causal),
    }
    if implementation in reasons:
        if reason := reasons[implementation]:
            _say(f"{_described(q)} cannot use {implementation} ({reason}); xla computes it")
            return {"default": "xla"}
        return {"default": "xla", PLATFORMS[implementation]: implementation}
    names, scores = {"default": "xla"}, math.prod(q.shape[:-1]) * k.shape[1]
    if scores > FEW["cpu"]:
        names["cpu"] = "chunked"
    if scores > FEW["tpu"] and k.shape[1] >= MANY_KEYS and not reasons["splash"]:
        names["tpu"] = "splash"
    if not reasons["cudnn"]:
        names["cuda"] = "cudnn"
    return names


def why_not_splash(q: Array, is_causal: bool = False) -> str | None:
    """Why the kernel for TPUs cannot compute an attention; None if it can."""
    if is_causal:
        return "it is causal"
    too_many = q.shape[-1] > MOST_FEATURES
    return f"head dim must be <= {MOST_FEATURES}" if too_many else None


def why_not_cudnn(q: Array, k: Array, v: Array, is_causal: bool = False) -> str | None:
    """Why cudnn cannot compute an attention, in the words of jax; None if it can."""

    def pullback(*arrays):
        return jax.vjp(lambda q, k, v: _cudnn(q, k, v, is_causal, 1), *arrays)[1]

    try:
        jax.eval_shape(pullback, q, k, v)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return None


def _described(q):
    return f"attention of head dim {q.shape[-1]} in {q.dtype}"


@functools.cache  # once each
def _say(what):
    print(f"note: {what}", file=sys.stderr)


def _xla(q, k, v, is_causal, repeats):
    # n equal keys have n times the weight of one: exp(score + log n)
    bias = jnp.zeros((1, 1, 1, k.shape[1])).at[..., -1].set(math.log(repeats))
    return jax.nn.dot_product_attention(
        *(q, k, v, None if repeats == 1 else bias), is_causal=is_causal, implementation="xla"
    )


def _splash(q, k, v, is_causal, repeats):
    del is_causal  # it is not
    return splash_attention(q, _repeated(k, repeats), _repeated(v, repeats))


def _cudnn(q, k, v, is_causal, repeats):
    k, v = (_repeated(x, repeats) for x in (k, v))
    length = q.shape[1]
    lengths: dict[str, Any] = {}
    if any(x.shape[1] % CUDNN_MULTIPLE for x in (q, k)):
        names = {"query_seq_lengths": q, "key_value_seq_lengths": k}
        lengths = {name: jnp.full(x.shape[0], x.shape[1], jnp.int32) for name, x in names.items()}
        q, k, v = (_filled_up(x, CUDNN_MULTIPLE) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q, k, v, is_causal=is_causal, implementation="cudnn", **lengths
    )
    return out[:, :length]


def _repeated(x, repeats):
    """[B, S, H, D] with the last token so often."""
    if repeats == 1:
        return x
    return jnp.concatenate([x, jnp.repeat(x[:, -1:], repeats - 1, axis=1)], axis=1)


def _filled_up(x, multiple):
    """[B, L, H, D] with zeros behind, to the next multiple of tokens."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, 0)))


_COMPUTE = {"xla": _xla, "cudnn": _cudnn, "splash": _splash, "chunked": chunked_attention}
