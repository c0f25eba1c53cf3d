"""Inception v3 as the Fréchet Inception Distance uses it: TensorFlow's network of 2015-12-05.

It differs from torchvision's: average pools do not count the padding, the last block has a max pool
where the one before it has an average, and BatchNorm adds 1e-3 to the variance. Attributes are
named as in the file of pytorch-fid and torch-fidelity. That file's last layer, `fc` with 1008
classes, is left out.

Shape letters: B batch, H height, W width, C channels.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

SIZE = 299  # pixels of a side
FEATURES = 2048
EPS = 1e-3


class BatchNorm(nnx.Module):
    """Channels of [B, H, W, C] brought to known means and variances, then scaled and shifted."""

    def __init__(self, channels, *, rngs):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.running_mean = nnx.Param(jnp.zeros(channels))
        self.running_var = nnx.Param(jnp.ones(channels))

    def __call__(self, x):
        factor = self.scale[...] * jax.lax.rsqrt(self.running_var[...] + EPS)
        offset = self.bias[...] - self.running_mean[...] * factor
        return x * factor.reshape(1, 1, 1, -1) + offset.reshape(1, 1, 1, -1)


class BasicConv2d(nnx.Module):
    """Convolution without a bias, BatchNorm and ReLU, [B, H, W, C_in] -> [B, H', W', C_out].

    `kernel` is (height, width); with stride 1 and `padded` H' = H, W' = W.
    """

    def __init__(self, channels, out_channels, kernel=(1, 1), stride=1, padded=True, *, rngs):
        padding = [(size // 2, size // 2) if padded else (0, 0) for size in kernel]
        self.conv = nnx.Conv(
            channels,
            out_channels,
            kernel,
            strides=stride,
            padding=padding,
            use_bias=False,
            rngs=rngs,
        )
        self.bn = BatchNorm(out_channels, rngs=rngs)

    def __call__(self, x):
        return jax.nn.relu(self.bn(self.conv(x)))


def halved(x):
    """Max pool of 3x3 with stride 2 and no padding."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


def averaged(x):
    """Average of each pixel and its neighbours, as many as there are."""
    return nnx.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def joined(*branches):
    """Branches next to each other in the channels."""
    return jnp.concatenate(branches, axis=-1)


class InceptionA(nnx.Module):
    """1x1, 5x5, two 3x3, and an average pool: [B, H, W, C] -> [B, H, W, 224 + pool_channels]."""

    def __init__(self, channels, pool_channels, *, rngs):
        conv = functools.partial(BasicConv2d, rngs=rngs)
        self.branch1x1 = conv(channels, 64)
        self.branch5x5_1 = conv(channels, 48)
        self.branch5x5_2 = conv(48, 64, (5, 5))
        self.branch3x3dbl_1 = conv(channels, 64)
        self.branch3x3dbl_2 = conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = conv(96, 96, (3, 3))
        self.branch_pool = conv(channels, pool_channels)

    def __call__(self, x):
        return joined(
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(averaged(x)),
        )


class InceptionB(nnx.Module):
    """To half the size: [B, H, W, C] -> [B, H', W', 480 + C]."""

    def __init__(self, channels, *, rngs):
        conv = functools.partial(BasicConv2d, rngs=rngs)
        self.branch3x3 = conv(channels, 384, (3, 3), 2, padded=False)
        self.branch3x3dbl_1 = conv(channels, 64)
        self.branch3x3dbl_2 = conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = conv(96, 96, (3, 3), 2, padded=False)

    def __call__(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return joined(self.branch3x3(x), double, halved(x))


class InceptionC(nnx.Module):
    """7x7 as 1x7 and 7x1, once and twice: [B, H, W, C] -> [B, H, W, 768]."""

    def __init__(self, channels, inner, *, rngs):
        conv = functools.partial(BasicConv2d, rngs=rngs)
        self.branch1x1 = conv(channels, 192)
        self.branch7x7_1 = conv(channels, inner)
        self.branch7x7_2 = conv(inner, inner, (1, 7))
        self.branch7x7_3 = conv(inner, 192, (7, 1))
        self.branch7x7dbl_1 = conv(channels, inner)
        self.branch7x7dbl_2 = conv(inner, inner, (7, 1))
        self.branch7x7dbl_3 = conv(inner, inner, (1, 7))
        self.branch7x7dbl_4 = conv(inner, inner, (7, 1))
        self.branch7x7dbl_5 = conv(inner, 192, (1, 7))
        self.branch_pool = conv(channels, 192)

    def __call__(self, x):
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return joined(
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(averaged(x)),
        )


class InceptionD(nnx.Module):
    """To half the size: [B, H, W, C] -> [B, H', W', 512 + C]."""

    def __init__(self, channels, *, rngs):
        conv = functools.partial(BasicConv2d, rngs=rngs)
        self.branch3x3_1 = conv(channels, 192)
        self.branch3x3_2 = conv(192, 320, (3, 3), 2, padded=False)
        self.branch7x7x3_1 = conv(channels, 192)
        self.branch7x7x3_2 = conv(192, 192, (1, 7))
        self.branch7x7x3_3 = conv(192, 192, (7, 1))
        self.branch7x7x3_4 = conv(192, 192, (3, 3), 2, padded=False)

    def __call__(self, x):
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return joined(self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), halved(x))


class InceptionE(nnx.Module):
    """3x3 as 1x3 beside 3x1, and a pool: [B, H, W, C] -> [B, H, W, 2048]."""

    def __init__(self, channels, pool, *, rngs):
        conv = functools.partial(BasicConv2d, rngs=rngs)
        self.pool = pool
        self.branch1x1 = conv(channels, 320)
        self.branch3x3_1 = conv(channels, 384)
        self.branch3x3_2a = conv(384, 384, (1, 3))
        self.branch3x3_2b = conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = conv(channels, 448)
        self.branch3x3dbl_2 = conv(448, 384, (3, 3))
        self.branch3x3dbl_3a = conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = conv(384, 384, (3, 1))
        self.branch_pool = conv(channels, 192)

    def __call__(self, x):
        pooled = nnx.max_pool(x, (3, 3), padding="SAME") if self.pool == "max" else averaged(x)
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return joined(
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        )


class InceptionV3(nnx.Module):
    """Pictures to the 2048 pooled features that FID compares; `config` is None, there is one."""

    def __init__(self, config: None, *, rngs: nnx.Rngs):
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, (3, 3), 2, padded=False, rngs=rngs)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, (3, 3), padded=False, rngs=rngs)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, (3, 3), rngs=rngs)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, rngs=rngs)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, (3, 3), padded=False, rngs=rngs)
        self.Mixed_5b = InceptionA(192, 32, rngs=rngs)
        self.Mixed_5c = InceptionA(256, 64, rngs=rngs)
        self.Mixed_5d = InceptionA(288, 64, rngs=rngs)
        self.Mixed_6a = InceptionB(288, rngs=rngs)
        self.Mixed_6b = InceptionC(768, 128, rngs=rngs)
        self.Mixed_6c = InceptionC(768, 160, rngs=rngs)
        self.Mixed_6d = InceptionC(768, 160, rngs=rngs)
        self.Mixed_6e = InceptionC(768, 192, rngs=rngs)
        self.Mixed_7a = InceptionD(768, rngs=rngs)
        self.Mixed_7b = InceptionE(1280, "average", rngs=rngs)
        self.Mixed_7c = InceptionE(2048, "max", rngs=rngs)

    def __call__(self, images: Float[Array, "B 299 299 3"]) -> Float[Array, "B 2048"]:
        """The features.

        Args:
            images: RGB in [0, 255], resized to 299 pixels a side.

        Returns:
            Averages over the last map, float32.
        """
        x = (images - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halved(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(halved(x))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(axis=(1, 2)).astype(jnp.float32)
