"""scikit-learn's bundled handwritten digits (UCI): 1,797 real 8x8 images.

An image becomes a 4x4x4 "latent" by space-to-depth, and its label becomes two one-hot tokens,
[start, digit]: the text-free stand-ins for Stable Diffusion's autoencoder and text encoder. They
have no weights.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slam_jax.data.batches import Batch
from slam_jax.data.rejects import Rejects

NULL_LABEL = 10  # the empty prompt
START_TOKEN = 11
VOCABULARY = 12
IMAGE_SHAPE = (8, 8, 1)
LATENT_SHAPE = (4, 4, 4)


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images in [-1, 1], float32 [1797, 8, 8, 1], and labels, int32 [1797]."""
    from sklearn import datasets  # takes a while

    digits: Any = datasets.load_digits()
    return (digits.images[..., None] / 8.0 - 1.0).astype(np.float32), digits.target.astype(np.int32)


def encode_images(images: Float[np.ndarray, "B 8 8 1"]) -> Float[np.ndarray, "B 4 4 4"]:
    """Space to depth: each 2x2 patch becomes the 4 channels of one latent pixel."""
    b, h, w, _ = images.shape
    return (
        images.reshape(b, h // 2, 2, w // 2, 2)
        .transpose(0, 1, 3, 2, 4)
        .reshape(b, h // 2, w // 2, 4)
    )


def decode_latents(latents: Float[Array, "B 4 4 4"]) -> Float[Array, "B 8 8 1"]:
    """The inverse of `encode_images`."""
    b, h, w, _ = latents.shape
    return latents.reshape(b, h, w, 2, 2).transpose(0, 1, 3, 2, 4).reshape(b, 2 * h, 2 * w, 1)


def tokenize(labels: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B 2"]:
    """Token ids [start, label]; NULL_LABEL is the empty prompt.

    Raises:
      ValueError: a label outside 0 .. 10.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind != "i" or np.any((labels < 0) | (labels > NULL_LABEL)):
        raise ValueError(
            f"labels: {labels.tolist()} must be digits 0 to 9 (or {NULL_LABEL} for none)"
        )
    return np.stack([np.full_like(labels, START_TOKEN), labels], axis=1).astype(np.int32)


def embed_tokens(tokens: Int[Array, "B L"]) -> Float[Array, "B L 12"]:
    """One-hot vectors: the cross-attention's own projections of them are the learnt embedding."""
    return jax.nn.one_hot(tokens, VOCABULARY, dtype=jnp.float32)


NULL_TOKENS = tokenize(np.array([NULL_LABEL]))[0]


class Source:
    """The examples for the batch pipeline: {"latents": [B, 4, 4, 4], "tokens": [B, 2]}."""

    name = identity = "digits"

    def __init__(self):
        images, labels = load()
        self._latents, self._tokens = encode_images(images), tokenize(labels)

    def __len__(self) -> int:
        return len(self._latents)

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> tuple[Batch, Rejects]:
        return {"latents": self._latents[indices], "tokens": self._tokens[indices]}, Rejects()
