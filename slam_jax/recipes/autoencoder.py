"""Training of an autoencoder, and what is known of a finished one."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slam_jax.data.batches import Source
from slam_jax.method.method import gaussian
from slam_jax.models import functional
from slam_jax.models.vae import AutoencoderKL, VAEConfig
from slam_jax.parallel.keys import ENCODE
from slam_jax.training.step import Batch, Loss, Params

BATCH = 64


def reconstruction_loss(vae: VAEConfig, kl_weight: float) -> Loss:
    """Mean absolute error of the pictures, and the latents' divergence from a standard normal.

        E |x - decode(z)| + kl_weight * KL(N(mean, var) || N(0, 1)),    z ~ N(mean, var)

    Both are means over all numbers of a picture, or of its latents (Kingma and Welling 2014, app.
    B; Rombach et al. 2022, section 3.1, without the adversarial and the perceptual part).
    """
    encode = functional.apply_fn(AutoencoderKL, vae, "encode")
    decode = functional.apply_fn(AutoencoderKL, vae, "decode")

    def loss(params: Params, ema: Params, frozen: Any, batch: Batch, examples, key):
        del ema, frozen
        images = _scaled(batch["images"])
        mean, logvar = encode(params, images)
        noise = gaussian(jax.random.fold_in(key, ENCODE), examples, mean.shape[1:])
        decoded = decode(params, mean + jnp.exp(logvar / 2) * noise)
        error = jnp.abs(images - decoded).mean(axis=(1, 2, 3))
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean(axis=(1, 2, 3))
        count = jnp.float32(len(images))
        sums = {"error": (error.sum(), count), "kl": (kl.sum(), count)}
        return error + kl_weight * kl, sums

    return loss


def _scaled(images):
    return images.astype(jnp.float32) / 127.5 - 1


def mean_and_deviation(vae: VAEConfig, params: Params, source: Source) -> tuple[float, float]:
    """Mean and standard deviation of the latents z ~ N(mean, var), over all examples.

    Args:
      vae: the autoencoder.
      params: its weights.
      source: pictures; where BATCH does not divide their number, the last ones are left out.
    """
    encode = functional.apply_fn(AutoencoderKL, vae, "encode")

    @jax.jit
    def sums(images):
        mean, logvar = encode(params, _scaled(images))
        return mean.mean(), (mean**2 + jnp.exp(logvar)).mean()

    first, second = np.mean(
        [jax.device_get(sums(i)) for i in _pictures(source)], axis=0, dtype=float
    )
    return float(first), float(np.sqrt(second - first**2))


def psnr(vae: VAEConfig, params: Params, source: Source) -> float:
    """Peak signal-to-noise ratio of pictures behind the autoencoder, in dB: the mean over pictures
    of 10 log10(255^2 / MSE), of latents without their noise and pixels rounded to bytes.

    Args:
      vae: the autoencoder.
      params: its weights.
      source: pictures; where BATCH does not divide their number, the last ones are left out.
    """
    encode = functional.apply_fn(AutoencoderKL, vae, "encode")
    decode = functional.apply_fn(AutoencoderKL, vae, "decode")

    @jax.jit
    def decibels(images):
        decoded = decode(params, encode(params, _scaled(images))[0])
        pixels = jnp.round(127.5 * (jnp.clip(decoded, -1, 1) + 1))
        mse = ((pixels - images) ** 2).mean(axis=(1, 2, 3))
        return (10 * jnp.log10(255**2 / mse)).mean()

    return float(np.mean([decibels(images) for images in _pictures(source)]))


def _pictures(source: Source) -> Iterator[np.ndarray]:
    """Pictures by BATCH, or all where they are fewer: one compiled program."""
    size = min(BATCH, len(source))
    for start in range(0, len(source) - size + 1, size):
        indices = np.arange(start, start + size)
        yield source.read(indices, indices)[0]["images"]
