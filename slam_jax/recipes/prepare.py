"""Makes the shards of prepared latents, and the plan that says what is in them."""

import argparse
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from slam_jax.config.options import Data
from slam_jax.data.examples import Examples
from slam_jax.data.prepared import FORMAT
from slam_jax.data.prepared_write import Store
from slam_jax.data.rejects import Rejects
from slam_jax.data.views import Cutter, groups, read_ahead
from slam_jax.families.stable_diffusion_pipeline import StableDiffusionPipeline
from slam_jax.formats.diffusers_folder import Folder, fingerprints
from slam_jax.recipes.encode import Encoder

AHEAD = 4  # batches of pictures that wait for the devices
# Command-line options that decide what is stored.
OPTIONS = (
    *("resolution", "crop", "flip", "captions", "text_embeddings"),
    *("dtype", "precision", "shard_size"),
)
T = TypeVar("T")


def plan_of(
    arguments: argparse.Namespace,
    data: Data,
    examples: Examples,
    model: Folder,
    pipeline: StableDiffusionPipeline,
) -> dict[str, Any]:
    """All that decides what is stored."""
    parts = ("vae", "tokenizer") + (("text_encoder",) if arguments.text_embeddings else ())
    prints = fingerprints(model)
    return {
        "format": FORMAT,
        "source": examples.name,
        "identity": examples.identity,
        "examples": len(examples),
        "filters": {"min_size": data.min_size, "max_watermark": data.max_watermark},
        "options": {name: getattr(data, name) for name in ("caption_key", "image_key", "split")},
        "model": {
            "path": model.name,
            "revision": model.revision,
            "variant": model.variant,
            "fingerprints": {name: prints[name] for name in prints if name.startswith(parts)},
        },
        **{name: getattr(arguments, name) for name in OPTIONS},
        "seed": arguments.seed if arguments.crop == "random" else None,
        "fields": pipeline.prepared_fields(
            1 + arguments.flip,
            arguments.captions,
            arguments.text_embeddings,
            arguments.dtype,
        ),
    }


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """The same items, each when the next one has been made: the devices work on that meanwhile."""
    iterator = iter(items)
    for previous in iterator:
        for item in iterator:
            yield previous
            previous = item
        yield previous


def encode(
    store: Store, shards: list[int], encoder: Encoder, cutter: Cutter, data: Data, bar: tqdm
) -> Generator[tuple[int, Rejects]]:
    """Makes shards.

    Args:
      store: where.
      shards: which.
      encoder: of pictures and captions.
      cutter: of the source's examples.
      data: how they are read.
      bar: the progress.

    Returns:
      For each shard before it is kept, how many examples it has and what was passed over.

    Raises:
      InputError: something cannot be encoded or written.
    """
    counts = {shard: store.count(shard) for shard in shards}
    parts = (np.arange(count) + shard * store.shard_size for shard, count in counts.items())
    indices = np.concatenate([np.arange(0), *parts])
    with closing(read_ahead(cutter, indices, data.workers, AHEAD * encoder.batch)) as stream:
        started = (
            (group, encoder.start(group.views) if group.views else None)
            for group in groups(stream, counts, encoder.batch)
        )
        for shard, parts in groupby(one_behind(started), key=lambda pair: pair[0].shard):
            with store.shard(shard) as writer:
                for group, encoded in parts:
                    if encoded is not None:
                        writer.write(encoder.finish(encoded))
                    writer.rejects.update(group.rejects)
                    bar.update(group.read)
                yield writer.count, writer.rejects
