"""Attention tile by tile, for CPUs: the scores of all pairs of tokens are never there at once.

It is Rabe and Staats 2021, with the queries cut and the keys not; the backward pass computes the
weights again from the sums that the forward pass keeps, as FlashAttention does (Dao et al. 2022).

Scores are kept as [keys, queries]: XLA:CPU reduces over an axis that is not the last one several
numbers at a time, over the last one number by number.

Shape letters: B batch, L query tokens, S key tokens, H heads, D features of a head; in a tile G
heads and R queries.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TILE = 3 * 2**18  # scores, 3 MiB of float32: the caches of today's CPUs hold them
ROWS = 128  # and no fewer queries than these, or else the products are slow


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def chunked_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    is_causal: bool = False,
    repeats: int = 1,
) -> Float[Array, "B L H D"]:
    """As `models.attention.attention`."""
    return _forward(q, k, v, is_causal, repeats)[0]


def _forward(q, k, v, is_causal, repeats):
    """The outputs; and, for the backward pass, each query's log of the sum of exp(scores) too."""
    tiles = _Tiles.of(q, k)

    def heads(arrays):
        queries, keys, values = arrays

        def tile(arrays):
            position, queries = arrays
            scores = _scores(queries, keys, position, is_causal, repeats)
            top = scores.max(axis=2, keepdims=True)
            weights = jnp.exp(scores - top)
            total = weights.sum(axis=2, keepdims=True)
            out = _product("gbsd,gbsr->gbdr", values, weights.astype(values.dtype)) / total
            return out.mT.astype(queries.dtype), top + jnp.log(total)

        return _each(tile, (tiles.positions, queries))

    out, log_sums = _each(heads, (tiles.queries(q), tiles.keys(k), tiles.keys(v)))
    out = tiles.join_queries(out)
    return out, (q, k, v, out, log_sums)


def _backward(is_causal, repeats, kept, cotangent):
    q, k, v, out, log_sums = kept
    tiles, scale = _Tiles.of(q, k), 1 / math.sqrt(q.shape[-1])
    # What all weights of a query have in common in the gradient of the softmax.
    common = jnp.sum(out.astype(jnp.float32) * cotangent, axis=-1, keepdims=True)
    by_query = *map(tiles.queries, (q, cotangent, common)), log_sums

    def heads(arrays):
        by_query, keys, values = arrays

        def tile(arrays):
            position, (queries, cotangents, common, log_sums) = arrays
            scores = _scores(queries, keys, position, is_causal, repeats)
            weights = jnp.exp(scores - log_sums)
            of_weights = _product("gbsd,gbrd->gbsr", values, cotangents)
            of_products = (weights * (of_weights - common.mT) * scale).astype(q.dtype)
            weights = weights.astype(values.dtype)
            of_keys = _product("gbsr,gbrd->gbsd", of_products, queries)
            of_values = _product("gbsr,gbrd->gbsd", weights, cotangents)
            of_queries = _product("gbsd,gbsr->gbdr", keys, of_products)
            return (of_keys, of_values), of_queries.mT.astype(q.dtype)

        of_both, of_queries = _sums_and_each(tile, (tiles.positions, by_query))
        return of_queries, *(x.astype(keys.dtype) for x in of_both)

    of_queries, *of_keys_and_values = _each(heads, (by_query, tiles.keys(k), tiles.keys(v)))
    return tiles.join_queries(of_queries), *map(tiles.join_keys, of_keys_and_values)


chunked_attention.defvjp(_forward, _backward)


def _each(function, arrays):
    """jax.lax.map; a single one is not in a loop, which XLA:CPU would compute on one core."""
    if len(jax.tree.leaves(arrays)[0]) > 1:
        return jax.lax.map(function, arrays)
    return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], arrays)))


def _sums_and_each(function, arrays):
    """Of (a, b) for each: the sum of all a, and all b one behind the other."""
    first = jax.tree.map(lambda x: x[0], arrays)
    if len(jax.tree.leaves(arrays)[0]) == 1:
        total, one = function(first)
        return total, one[None]

    def add(total, arrays):
        more, one = function(arrays)
        return jax.tree.map(jnp.add, total, more), one

    shapes = jax.eval_shape(function, first)[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, arrays)


def _product(subscripts, a, b):
    """With sums, and the result, in float32."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _scores(queries, keys, position, is_causal, repeats):
    """k q^T / sqrt(D) [G, B, S, R] of a tile whose first query is at `position`, float32."""
    scores = _product("gbsd,gbrd->gbsr", keys, queries) / math.sqrt(queries.shape[-1])
    if repeats > 1:  # n equal keys have n times the weight of one: exp(score + log n)
        scores = scores.at[:, :, -1].add(math.log(repeats))
    if not is_causal:
        return scores
    key = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 2)
    query = position + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 3)
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
    def of(cls, q: Any, k: Any) -> "_Tiles":
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
        """[B, S, H, D] as [H / G, G, B, S, D]."""
        x = x.transpose(2, 0, 1, 3)
        return x.reshape(-1, self.at_once, *x.shape[1:])

    def join_keys(self, x):
        """The inverse of `keys`."""
        return x.reshape(-1, *x.shape[2:]).transpose(1, 2, 0, 3)

    def queries(self, x):
        """[B, L, H, D] as [H / G, L / R, G, B, R, D], with zeros at the end."""
        batch, length, heads, features = x.shape
        x = jnp.pad(x, ((0, 0), (0, -length % self.rows), (0, 0), (0, 0)))
        x = x.reshape(batch, -1, self.rows, heads // self.at_once, self.at_once, features)
        return x.transpose(3, 1, 4, 0, 2, 5)

    def join_queries(self, x):
        """The inverse of `queries`."""
        x = x.transpose(3, 1, 4, 0, 2, 5)
        return x.reshape(x.shape[0], -1, x.shape[3] * x.shape[4], x.shape[5])[:, : self.length]
