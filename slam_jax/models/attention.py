"""Attention by several implementations, picked per platform, shape and dtype.

    xla      jax.nn's, compiled by XLA: keeps the weights of all pairs of tokens
    cudnn    NVIDIA's kernel, which keeps none of them
    chunked  tile by tile, which keeps none either; its tiles are those of CPUs
    auto     cudnn on NVIDIA's GPUs where it can run; chunked on CPUs, but for small shapes; else
             xla

The platform is what a program is lowered for, which jax.export may choose to be another one than
that of this machine; so a program may hold several implementations until then.

Shape letters: B batch, L query tokens, S key tokens, H heads, D features of a head.
"""

import functools
import math
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Scores in a tile, 8 MiB of float32: the caches of today's CPUs hold it. Where all are no more than
# these, what XLA makes of the whole is about as fast there.
TILE = 2**21
ROWS = 128  # and no fewer queries than these, or else the products are slow

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

    Where cudnn is asked for and cannot run, xla computes and a line on stderr says why.

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
        platform: lambda q, k, v, name=name: _computed(name, (q, k, v), is_causal, repeats)
        for platform, name in names.items()
    }
    if len(compute) == 1:
        return compute["default"](q, k, v)
    return jax.lax.platform_dependent(q, k, v, **compute)


def _per_platform(implementation, arrays, is_causal):
    """Platform -> who computes there; "default" is any other, and alone where all do the same."""
    if implementation in ("xla", "chunked"):
        return {"default": implementation}
    reason = why_not_cudnn(*arrays, is_causal=is_causal)
    if implementation == "cudnn":
        if reason:
            _say(f"{_described(arrays[0])} cannot use cudnn ({reason}); xla computes it")
        return {"default": "xla"} | ({} if reason else {"cuda": "cudnn"})
    q, k, _ = arrays
    names = {"default": "xla"}
    if math.prod(q.shape[:-1]) * k.shape[1] > TILE:
        names["cpu"] = "chunked"
    if not reason:
        names["cuda"] = "cudnn"
    return names


def why_not_cudnn(q: Array, k: Array, v: Array, is_causal: bool = False) -> str | None:
    """Why cudnn cannot compute an attention, in the words of jax; None if it can."""

    def pullback(*arrays):
        return jax.vjp(lambda q, k, v: _cudnn(q, k, v, is_causal), *arrays)[1]

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


def _computed(name, arrays, is_causal, repeats):
    if repeats == 1:
        return _COMPUTE[name](*arrays, is_causal)
    q, k, v = arrays
    if name == "xla":  # n equal keys have n times the weight of one: exp(score + log n)
        bias = jnp.zeros((1, 1, 1, k.shape[1])).at[..., -1].set(math.log(repeats))
        return _xla(q, k, v, is_causal, bias)
    k, v = (jnp.concatenate([x, jnp.repeat(x[:, -1:], repeats - 1, axis=1)], 1) for x in (k, v))
    return _COMPUTE[name](q, k, v, is_causal)


def _xla(q, k, v, is_causal, bias=None):
    return jax.nn.dot_product_attention(q, k, v, bias, is_causal=is_causal, implementation="xla")


def _cudnn(q, k, v, is_causal):
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


def _filled_up(x, multiple):
    """[B, L, H, D] with zeros behind, to the next multiple of tokens."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, 0)))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunked(q, k, v, is_causal):
    return _chunked_forward(q, k, v, is_causal)[0]


def _chunked_forward(q, k, v, is_causal):
    """The outputs; and, for the backward pass, each query's log of the sum of exp(scores) too."""
    tiles = _Tiles.of(q, k)

    def heads(arrays):
        queries, keys, values = arrays

        def tile(arrays):
            position, queries = arrays
            scores = _scores(queries, keys, position, is_causal)
            top = scores.max(axis=-1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = weights.sum(axis=-1, keepdims=True)
            out = _product("gbqk,gbkd->gbqd", weights.astype(values.dtype), values)
            return (out / total).astype(queries.dtype), top + jnp.log(total)

        return jax.lax.map(tile, (tiles.positions, queries))

    out, log_sums = jax.lax.map(heads, (tiles.queries(q), tiles.keys(k), tiles.keys(v)))
    out = tiles.join_queries(out)
    return out, (q, k, v, out, log_sums)


def _chunked_backward(is_causal, kept, cotangent):
    q, k, v, out, log_sums = kept
    tiles, scale = _Tiles.of(q, k), 1 / math.sqrt(q.shape[-1])
    # What all weights of a query have in common in the gradient of the softmax.
    common = jnp.sum(out.astype(jnp.float32) * cotangent, axis=-1, keepdims=True)
    by_query = *map(tiles.queries, (q, cotangent, common)), log_sums

    def heads(arrays):
        by_query, keys, values = arrays

        def tile(sums, arrays):
            position, (queries, cotangents, common, log_sums) = arrays
            weights = jnp.exp(_scores(queries, keys, position, is_causal) - log_sums)
            of_weights = _product("gbqd,gbkd->gbqk", cotangents, values)
            of_products = (weights * (of_weights - common) * scale).astype(q.dtype)
            weights = weights.astype(values.dtype)
            of_keys = _product("gbqk,gbqd->gbkd", of_products, queries)
            of_values = _product("gbqk,gbqd->gbkd", weights, cotangents)
            of_queries = _product("gbqk,gbkd->gbqd", of_products, keys).astype(q.dtype)
            return (sums[0] + of_keys, sums[1] + of_values), of_queries

        zeros = jnp.zeros(keys.shape, jnp.float32)
        sums, of_queries = jax.lax.scan(tile, (zeros, zeros), (tiles.positions, by_query))
        return of_queries, *(x.astype(keys.dtype) for x in sums)

    of_queries, *of_keys_and_values = jax.lax.map(heads, (by_query, tiles.keys(k), tiles.keys(v)))
    return tiles.join_queries(of_queries), *map(tiles.join_keys, of_keys_and_values)


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _product(subscripts, a, b):
    """With sums, and the result, in float32."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _scores(queries, keys, position, is_causal):
    """q k^T / sqrt(D) of a tile whose first query is at `position`, float32."""
    scores = _product("gbqd,gbkd->gbqk", queries, keys) / math.sqrt(queries.shape[-1])
    if not is_causal:
        return scores
    query = position + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 2)
    key = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 3)
    return jnp.where(key <= query, scores, -jnp.inf)


@dataclass(frozen=True)
class _Tiles:
    """How arrays [B, L, H, D] are cut: `at_once` heads, and `rows` of their queries, at a time.

    The batch stays an axis of its own, so that it may be spread over devices.
    """

    length: int  # L
    at_once: int
    rows: int

    @classmethod
    def of(cls, q, k):
        """The largest tiles that have no more than TILE scores."""
        batch, length, heads, _ = q.shape
        scores_per_row = batch * k.shape[1]
        rows = min(length, max(ROWS, TILE // scores_per_row))
        count = -(-length // rows)
        fitting = TILE // (scores_per_row * length)
        at_once = max(n for n in range(1, heads + 1) if heads % n == 0 and n <= max(1, fitting))
        return cls(length, at_once, -(-length // count))

    @property
    def positions(self):
        """Of the first query of each tile."""
        return jnp.arange(0, self.length, self.rows)

    def keys(self, x):
        """[B, S, H, D] as [H / at_once, at_once, B, S, D]."""
        x = x.transpose(2, 0, 1, 3)
        return x.reshape(-1, self.at_once, *x.shape[1:])

    def join_keys(self, x):
        """The inverse of `keys`."""
        return x.reshape(-1, *x.shape[2:]).transpose(1, 2, 0, 3)

    def queries(self, x):
        """[B, L, H, D] as [H / at_once, L / rows, at_once, B, rows, D], with zeros at the end."""
        x = _filled_up(x, self.rows)
        x = x.reshape(
            x.shape[0], -1, self.rows, x.shape[2] // self.at_once, self.at_once, x.shape[3]
        )
        return x.transpose(3, 1, 4, 0, 2, 5)

    def join_queries(self, x):
        """The inverse of `queries`."""
        x = x.transpose(3, 1, 4, 0, 2, 5)
        return x.reshape(x.shape[0], -1, x.shape[3] * x.shape[4], x.shape[5])[:, : self.length]


_COMPUTE = {"xla": _xla, "cudnn": _cudnn, "chunked": _chunked}
