"""Norms with torch's conventions; statistics are float32 whatever the data are.

Shape letters: B batch, H height, W width, C channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx


class GroupNorm(nnx.GroupNorm):
    """GroupNorm in one pass over the data for its statistics, and one for the result.

    The variance is of the distances from an estimate of the mean: it does not cancel when the mean
    is large, as E[x^2] - E[x]^2 does.
    """

    def __init__(self, channels, groups, eps, *, rngs):
        super().__init__(channels, num_groups=groups, epsilon=eps, rngs=rngs)

    def __call__(self, x):
        """[B, H, W, C] -> [B, H, W, C]."""
        assert self.scale is not None and self.bias is not None
        batch, height, width, channels = x.shape
        wide = x.astype(jnp.float32)
        # Of each channel: the mean of a row in the middle, where padding has not been.
        near = jax.lax.stop_gradient(wide[:, height // 2].mean(axis=1))
        distance = wide - near[:, None, None, :]
        # Over columns and then over rows, which XLA:CPU does twice as fast as over both at once.
        mean, square = (y.mean(axis=2).mean(axis=1) for y in (distance, jnp.square(distance)))

        def of_group(y):  # [B, C], with the mean of its group for each channel
            y = y.reshape(batch, self.num_groups, -1)
            return jnp.broadcast_to(y.mean(axis=2, keepdims=True), y.shape).reshape(batch, channels)

        # The variance of a group: within its channels, and between them.
        to_group = near + mean - of_group(near + mean)
        variance = of_group(jnp.maximum(square - mean**2, 0) + to_group**2)
        scale, bias = (p[...].astype(jnp.float32)[None, :] for p in (self.scale, self.bias))
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        offset = bias + (to_group - mean) * factor
        y = distance * factor[:, None, None, :] + offset[:, None, None, :]
        return y.astype(jnp.result_type(x, self.scale[...]))


class LayerNorm(nnx.LayerNorm):
    """LayerNorm with torch's epsilon and the two-pass variance; not `affine`: without weights."""

    def __init__(self, features, eps=1e-5, affine=True, *, rngs):
        super().__init__(
            features,
            epsilon=eps,
            use_bias=affine,
            use_scale=affine,
            use_fast_variance=False,
            rngs=rngs,
        )


class RMSNorm(nnx.RMSNorm):
    """x / sqrt(mean of x^2 + eps), with a scale."""

    def __init__(self, features, eps=1e-6, *, rngs):
        super().__init__(features, epsilon=eps, rngs=rngs)
