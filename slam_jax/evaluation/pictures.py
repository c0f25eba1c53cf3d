"""Draws the pictures that are measured, over all devices, and keeps their features."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from tqdm import tqdm

from slam_jax.base.errors import InputError
from slam_jax.drawing.draw import Settings, make_sampler
from slam_jax.drawing.metrics.metric import MOST_VALUES
from slam_jax.drawing.samplers import on_mesh
from slam_jax.evaluation.images import Images
from slam_jax.evaluation.parts import DIGESTS, IMAGES, Parts, save_pictures
from slam_jax.families.family import Model
from slam_jax.features.extract import THREADS, Extractor
from slam_jax.parallel.sharding import replicated

AT_A_TIME = 64  # real pictures, of any size, that are held at a time


@dataclass(frozen=True)
class Artist:
    """One model in one number of steps.

    Attributes:
      model: with its weights.
      settings: steps and guidance.
      seed: of the noise; picture i has that of (seed, i).
      batch: pictures that all devices of this process draw at a time.
      mesh: these devices.
    """

    model: Model
    settings: Settings
    seed: int
    batch: int
    mesh: Mesh

    def draw(
        self, texts: Sequence[str], parts: Iterator[tuple[int, range]]
    ) -> Iterator[tuple[int, range, UInt8[np.ndarray, "n H W C"]]]:
        """(number, its pictures, these drawn), of each part.

        Args:
          texts: prompt of every picture there is.
          parts: (number, pictures).

        Raises:
          InputError: a picture is not finite.
        """
        model = self.model
        draw = on_mesh(make_sampler(model, self.settings), self.mesh, self.settings.dtype)
        weights = jax.device_put((model.frozen, model.params), replicated(self.mesh))
        for number, pictures in parts:
            images = []
            for first in range(pictures.start, pictures.stop, self.batch):
                places = np.minimum(np.arange(first, first + self.batch), pictures.stop - 1)
                batch = model.pipeline.prompts([texts[int(place)] for place in places])
                drawn, finite = jax.device_get(draw(*weights, batch, (self.seed, first)))
                count = min(self.batch, pictures.stop - first)
                if not finite[:count].all():
                    raise InputError(
                        f"picture {first + int(finite.argmin())} is not finite: the weights are "
                        "damaged, or --dtype is too coarse for them"
                    )
                images.append(drawn[:count])
            yield number, pictures, np.concatenate(images)


def draw_parts(artist: Artist, texts: Sequence[str], parts: Parts, extractor: Extractor) -> None:
    """Draws and looks at the parts that are missing.

    Args:
      artist: who draws.
      texts: prompt of every picture.
      parts: where features go.
      extractor: what looks at pictures.

    Raises:
      InputError: a picture is not finite.
    """
    missing = list(parts.missing())
    with progress(parts, sum(len(pictures) for _, pictures in missing)) as bar:
        for number, pictures, images in artist.draw(texts, iter(missing)):
            features: dict[str, Any] = extractor.images(list(images))
            if images[0].size <= MOST_VALUES:
                features[IMAGES] = images
            if (tar := parts.tar(number)) is not None:
                named = [texts[place] for place in pictures]
                save_pictures(tar, pictures.start, list(images), named)
            parts.write(number, features)
            bar.update(len(pictures))


def look_at(images: Images, parts: Parts, extractor: Extractor) -> None:
    """Features of pictures in files, and a digest of each.

    Args:
      images: real ones; each is read when its turn comes.
      parts: where features go.
      extractor: what looks at pictures.
    """
    missing = list(parts.missing())
    total = sum(len(pictures) for _, pictures in missing)
    with progress(parts, total) as bar, ThreadPoolExecutor(THREADS) as pool:
        for number, pictures in missing:
            found = []
            for first in range(pictures.start, pictures.stop, AT_A_TIME):
                some = range(first, min(first + AT_A_TIME, pictures.stop))
                seen = list(pool.map(images.__getitem__, some))
                digests = b"".join(hashlib.sha256(image.tobytes()).digest() for image in seen)
                rows = np.frombuffer(digests, np.uint8).reshape(len(seen), -1)
                found.append({**extractor.images(seen), DIGESTS: rows})
                bar.update(len(seen))
            parts.write(
                number, {name: np.concatenate([f[name] for f in found]) for name in found[0]}
            )


def read_prompts_of(texts: Sequence[str], parts: Parts, extractor: Extractor) -> None:
    """Features of prompts, one row for each picture."""
    for number, pictures in list(parts.missing()):
        parts.write(number, extractor.texts([texts[place] for place in pictures]))


def progress(parts: Parts, total: int) -> tqdm:
    """A bar for the pictures that this process has to make still."""
    return tqdm(desc=parts.folder.name, total=total, unit="picture", disable=total == 0)
