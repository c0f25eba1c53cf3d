"""The autoencoder's loss and what is measured of it, against torch's diffusers and scikit-image."""

from dataclasses import replace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import jit
from skimage.metrics import peak_signal_noise_ratio

from slam_jax.data.rejects import Rejects
from slam_jax.formats import convert
from slam_jax.method.method import gaussian
from slam_jax.models import functional
from slam_jax.models.vae import AutoencoderKL, VAEConfig
from slam_jax.parallel.keys import ENCODE
from slam_jax.recipes.autoencoder import BATCH, mean_and_deviation, psnr, reconstruction_loss

CONFIG = VAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(8, 16),
    norm_num_groups=4,
)
KL_WEIGHT = 0.1


class Pictures:
    """Random pictures, in the form of a source."""

    def __init__(self, count):
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)

    def __len__(self):
        return len(self.images)

    def read(self, indices, seeds):
        return {"images": self.images[indices]}, Rejects()


@pytest.fixture(scope="module")
def params():
    return functional.init(AutoencoderKL, CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def reference(params):
    model = diffusers.AutoencoderKL.from_config(CONFIG.to_dict())
    arrays = convert.to_torch(params).items()
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays})
    return model


def in_torch(images):
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


def test_loss_and_gradient_are_those_of_torch(params, reference):
    images, examples, key = Pictures(4).images, jnp.arange(4), jax.random.key(1)
    loss = reconstruction_loss(CONFIG, KL_WEIGHT)

    def mean_loss(params):
        losses, sums = loss(params, None, None, {"images": jnp.asarray(images)}, examples, key)
        return losses.mean(), (losses, sums)

    (_, (losses, sums)), gradient = jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    noise = gaussian(jax.random.fold_in(key, ENCODE), examples, (8, 8, 4))
    noise = torch.from_numpy(np.array(noise)).permute(0, 3, 1, 2)
    posterior = reference.encode(in_torch(images)).latent_dist
    decoded = reference.decode(posterior.mean + posterior.std * noise).sample
    error = (decoded - in_torch(images)).abs().mean(dim=(1, 2, 3))
    kl = posterior.kl() / posterior.mean[0].numel()
    expected = error + KL_WEIGHT * kl
    expected.mean().backward()
    np.testing.assert_allclose(losses, expected.detach(), rtol=1e-5)
    assert sums["error"][0] == pytest.approx(float(error.sum().detach()), rel=1e-5)
    assert sums["kl"][0] == pytest.approx(float(kl.sum().detach()), rel=1e-4)
    ours = convert.to_torch(gradient)
    for name, parameter in reference.named_parameters():
        theirs = parameter.grad.numpy()
        size = np.abs(theirs).max()
        np.testing.assert_allclose(ours[name], theirs, atol=1e-4 * size + 1e-7, err_msg=name)


def test_mean_and_deviation_of_latents_and_psnr(params, reference):
    pictures = Pictures(2 * BATCH)
    with torch.no_grad():
        posterior = reference.encode(in_torch(pictures.images)).latent_dist
        decoded = reference.decode(posterior.mean).sample.permute(0, 2, 3, 1).numpy()
    # The variance of N(mean, var) over all pictures is that of the means and the mean variance.
    variance = posterior.mean.double().var(correction=0) + posterior.var.double().mean()
    mean, deviation = mean_and_deviation(CONFIG, params, pictures)
    assert deviation == pytest.approx(float(variance) ** 0.5, rel=1e-5)
    assert mean == pytest.approx(float(posterior.mean.double().mean()), rel=1e-4)
    assert CONFIG.fitted(mean, deviation) == replace(CONFIG, scaling_factor=1 / deviation)
    pixels = np.round(127.5 * (decoded.clip(-1, 1) + 1))
    each = [
        peak_signal_noise_ratio(image.astype(float), drawn, data_range=255)
        for image, drawn in zip(pictures.images, pixels.astype(float), strict=True)
    ]
    assert psnr(CONFIG, params, pictures) == pytest.approx(np.mean(each), rel=1e-4)
