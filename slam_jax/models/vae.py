"""The autoencoder of Stable Diffusion: images to latents an eighth of their size, and back.

`VAEConfig`, or `SD3VAEConfig`, speaks the config.json of diffusers' AutoencoderKL and attributes
are named as in its checkpoints; whatever else such a config can ask for is refused by name.

    encode: images x -> mean, logvar of q(z | x) = N(mean, exp(logvar))
    latents of the diffusion model: scaling_factor * z; of SD 3: scaling_factor * (z - shift_factor)
    decode: z -> images

Shape letters: B batch, H height, W width, C channels; h, w height and width of the latents.
"""

import dataclasses
from typing import Self

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

# Keys of diffusers' config that have one supported value, which is the default there too.
FIXED = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
NORM_EPS = 1e-6
LOG_VARIANCES = -30, 20  # of latents, to which diffusers clips them


@dataclasses.dataclass(frozen=True)
class VAEConfig(PublishedConfig):
    """Configuration of `AutoencoderKL`, with the keys and defaults of diffusers.

    Tuples have one entry per level, the finest level first.
    """

    CLASS = "AutoencoderKL"
    FIXED = FIXED
    # What SD3VAEConfig may change; no fields here, as diffusers' older pipelines take no notice.
    shift_factor = None
    use_quant_conv = True
    use_post_quant_conv = True

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1  # resnets per down block; up blocks have one more
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32  # of the images it was trained on; a note
    scaling_factor: float = 0.18215  # one over the standard deviation of z, over a data set
    force_upcast: bool = True  # a note for others: half precision overflows; here params decide

    def __post_init__(self):
        levels = len(self.block_out_channels)
        types = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
        for name, block in types.items():
            ok = tuple(getattr(self, name)) == (block,) * levels
            require(self, name, ok, f"{levels} (as block_out_channels) of {block}")
        require_depths(self, "layers_per_block")
        require_side(self)
        require_kinds(self)
        require(self, "scaling_factor", self.scaling_factor > 0, "numbers above 0")

    @property
    def downscale(self) -> int:
        """Pixels of an image per latent, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def fitted(self, mean: float, deviation: float) -> Self:
        """The same for latents z of this mean and standard deviation over a data set."""
        del mean  # these latents are scaled only
        return dataclasses.replace(self, scaling_factor=1 / deviation)


@dataclasses.dataclass(frozen=True)
class SD3VAEConfig(VAEConfig):
    """Configuration of the `AutoencoderKL` of SD 3: a shift, and fewer convolutions."""

    FIXED = {key: FIXED[key] for key in FIXED if not hasattr(VAEConfig, key)}

    shift_factor: float | None = None  # the mean of z, over a data set
    use_quant_conv: bool = True  # the 1x1 convolution behind the encoder
    use_post_quant_conv: bool = True  # and before the decoder

    def fitted(self, mean: float, deviation: float) -> Self:
        return dataclasses.replace(super().fitted(mean, deviation), shift_factor=mean)


def _resnet(config, in_channels, out_channels, rngs):
    groups = config.norm_num_groups
    return layers.ResnetBlock2D(in_channels, out_channels, None, groups, NORM_EPS, rngs=rngs)


class PixelAttention(layers.Attention):
    """One head of attention between the pixels of a map [B, H, W, C], with a skip around it."""

    def __init__(self, channels, groups, *, rngs):
        super().__init__(channels, channels, heads=1, bias=True, rngs=rngs)
        self.group_norm = layers.GroupNorm(channels, groups, NORM_EPS, rngs=rngs)

    def __call__(self, x):
        batch, height, width, channels = x.shape
        h = self.group_norm(x).reshape(batch, height * width, channels)
        return x + super().__call__(h, h).reshape(x.shape)


class DownEncoderBlock2D(nnx.Module):
    """Resnets at one level, then a downsampler unless the level is the coarsest."""

    def __init__(self, config, level, *, rngs):
        channels, n = config.block_out_channels, config.layers_per_block
        out = channels[level]
        inputs = [channels[max(level - 1, 0)]] + [out] * (n - 1)
        self.resnets = nnx.List([_resnet(config, c, out, rngs) for c in inputs])
        is_coarsest = level == len(channels) - 1
        self.downsamplers = nnx.List(
            [] if is_coarsest else [layers.Downsample2D(out, padding=(0, 1), rngs=rngs)]
        )

    def __call__(self, x):
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UNetMidBlock2D(nnx.Module):
    """Resnet, attention, resnet at the coarsest level."""

    def __init__(self, config, *, rngs):
        channels = config.block_out_channels[-1]
        self.resnets = nnx.List([_resnet(config, channels, channels, rngs) for _ in range(2)])
        self.attentions = nnx.List([PixelAttention(channels, config.norm_num_groups, rngs=rngs)])

    def __call__(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class UpDecoderBlock2D(nnx.Module):
    """Resnets at one level, then an upsampler unless the level is the finest."""

    def __init__(self, config, level, *, rngs):
        channels, n = config.block_out_channels, config.layers_per_block + 1
        out = channels[level]
        inputs = [channels[min(level + 1, len(channels) - 1)]] + [out] * (n - 1)
        self.resnets = nnx.List([_resnet(config, c, out, rngs) for c in inputs])
        self.upsamplers = nnx.List([] if level == 0 else [layers.Upsample2D(out, rngs=rngs)])

    def __call__(self, x):
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nnx.Module):
    """Images [B, H, W, C] to moments of the latents [B, h, w, 2 C]."""

    def __init__(self, config, *, rngs):
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = layers.Conv(config.in_channels, channels[0], rngs=rngs)
        self.down_blocks = nnx.List(
            [DownEncoderBlock2D(config, level, rngs=rngs) for level in range(len(channels))]
        )
        self.mid_block = UNetMidBlock2D(config, rngs=rngs)
        self.conv_norm_out = layers.GroupNorm(channels[-1], groups, NORM_EPS, rngs=rngs)
        self.conv_out = layers.Conv(channels[-1], 2 * config.latent_channels, rngs=rngs)

    def __call__(self, x):
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    """Latents [B, h, w, C] to images [B, H, W, C]."""

    def __init__(self, config, *, rngs):
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = layers.Conv(config.latent_channels, channels[-1], rngs=rngs)
        self.mid_block = UNetMidBlock2D(config, rngs=rngs)
        self.up_blocks = nnx.List(
            [UpDecoderBlock2D(config, level, rngs=rngs) for level in reversed(range(len(channels)))]
        )
        self.conv_norm_out = layers.GroupNorm(channels[0], groups, NORM_EPS, rngs=rngs)
        self.conv_out = layers.Conv(channels[0], config.out_channels, rngs=rngs)

    def __call__(self, x):
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
    """Images to a Gaussian over latents, and latents to images; see `encode` and `decode`."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        moments, latents = 2 * config.latent_channels, config.latent_channels
        if config.use_quant_conv:
            self.quant_conv = layers.Conv(moments, moments, kernel_size=1, rngs=rngs)
        if config.use_post_quant_conv:
            self.post_quant_conv = layers.Conv(latents, latents, kernel_size=1, rngs=rngs)

    def encode(
        self, images: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"]]:
        """The distribution of the latents; computes in the parameters' dtype.

        Args:
            images: in [-1, 1], [B, H, W, in_channels].

        Returns:
            Mean and log variance (in LOG_VARIANCES) of the unscaled latents
            [B, h, w, latent_channels], float32; h = H / 8 in Stable Diffusion.
        """
        moments = self.encoder(images.astype(self.encoder.conv_in.kernel.dtype))
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOG_VARIANCES)

    def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W C"]:
        """Images from unscaled latents; computes in the parameters' dtype.

        Args:
            latents: `unscaled` ones of the diffusion model, [B, h, w, latent_channels].

        Returns:
            Images [B, H, W, out_channels], float32, in [-1, 1] but for overshoots.
        """
        latents = latents.astype(self.decoder.conv_in.kernel.dtype)
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)


def sample_latents(
    mean: Float[Array, "B h w C"],
    logvar: Float[Array, "B h w C"],
    eps: Float[Array, "B h w C"],
    config: VAEConfig,
) -> Float[Array, "B h w C"]:
    """The diffusion model's latents, (mean + exp(logvar / 2) eps - shift_factor) * scaling_factor.

    Args:
        mean, logvar: what `AutoencoderKL.encode` returns, [B, h, w, C].
        eps: standard normal noise [B, h, w, C].
        config: of the autoencoder.

    Returns:
        Scaled latents [B, h, w, C].
    """
    z = mean + jnp.exp(logvar / 2) * eps
    return (z - config.shift_factor if config.shift_factor else z) * config.scaling_factor


def unscaled(latents: Float[Array, "B h w C"], config: VAEConfig) -> Float[Array, "B h w C"]:
    """What `AutoencoderKL.decode` takes, latents / scaling_factor + shift_factor.

    Args:
        latents: the diffusion model's [B, h, w, C].
        config: of the autoencoder.

    Returns:
        Latents z [B, h, w, C].
    """
    return latents / config.scaling_factor + (config.shift_factor or 0.0)
