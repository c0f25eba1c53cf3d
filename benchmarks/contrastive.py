"""The loss of a CLIP trained from nothing, and what is done to pictures before it; of
train_judge.py."""

import jax
import jax.numpy as jnp
import numpy as np

from slam_jax.features.resize import CLIP_MEAN, CLIP_STD
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.clip_vision import CLIPVisionConfig, CLIPVisionModel
from slam_jax.parallel.sharding import AXES
from slam_jax.training.step import Loss, Params

TEXT, VISION = ("text_model", "text_projection"), ("vision_model", "visual_projection")
SCALE = "logit_scale"
FIRST_SCALE, LARGEST_SCALE = np.log(1 / 0.07), np.log(100)  # Radford et al. 2021, section 2.5


def contrastive_loss(
    text: CLIPTextConfig, vision: CLIPVisionConfig, shift: int = 0, colour: float = 0.0
) -> Loss:
    """Symmetric InfoNCE with a learnt temperature (Radford et al. 2021, arXiv 2103.00020).

        -1/2 log softmax_j(s x_i y_j) [i] - 1/2 log softmax_j(s y_i x_j) [i]

    of features x of pictures and y of captions, both of length 1, over the whole batch, on however
    many devices it is.

    Args:
      text, vision: the towers.
      shift, colour: see `augmented`.
    """
    read = functional.apply_fn(CLIPTextModel, text)
    look = functional.apply_fn(CLIPVisionModel, vision)

    def loss(params: Params, ema: Params, frozen, batch, examples, key):
        del ema, frozen
        images = augmented(batch["images"], examples, key, shift, colour)
        x = unit(look({name: params[name] for name in VISION}, images))
        y = unit(read({name: params[name] for name in TEXT}, batch["tokens"]).pooled)
        scale = jnp.exp(jnp.minimum(params[SCALE], LARGEST_SCALE))

        def half(rows, columns):
            all_columns = jax.lax.all_gather(columns, AXES, tiled=True)
            logits = scale * rows @ all_columns.T
            return jax.nn.logsumexp(logits, axis=1) - scale * (rows * columns).sum(axis=1)

        return (half(x, y) + half(y, x)) / 2, {}

    return loss


def unit(rows):
    """Rows of length 1."""
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def augmented(images, examples, key, shift: int, colour: float):
    """Standardised as CLIP's, each picture moved and with other colours.

    Args:
      images: uint8 [B, S, S, 3].
      examples, key: of the random draws.
      shift: pixels, at most, to any side; the border is repeated.
      colour: a channel is multiplied by 1 - colour to 1 + colour.
    """

    def one(image, example):
        place, factors = jax.random.split(jax.random.fold_in(key, example))
        around = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
        top, left = jax.random.randint(place, (2,), 0, 2 * shift + 1)
        moved = jax.lax.dynamic_slice(around, (top, left, 0), image.shape)
        factor = jax.random.uniform(factors, (1, 1, 3), minval=1 - colour, maxval=1 + colour)
        coloured = jnp.minimum(moved / 255 * factor, 1)
        return (coloured - CLIP_MEAN[None, None]) / CLIP_STD[None, None]

    return jax.vmap(one)(images, examples)
