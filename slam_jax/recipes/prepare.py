"""Makes the shards of prepared latents, and the plan that says what is in them."""

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from slam_jax.config.options import Data
from slam_jax.data.examples import Examples
from slam_jax.data.image_text import Transform
from slam_jax.data.prepared import FORMAT
from slam_jax.data.prepared_write import Store
from slam_jax.data.rejects import FEW, Rejects
from slam_jax.data.sources import open_examples, say_rejects
from slam_jax.data.views import Cutter, groups, read_ahead
from slam_jax.families.latent_pipeline import LatentPipeline
from slam_jax.formats.diffusers_folder import Folder, fingerprints
from slam_jax.recipes.encode import Encoder

AHEAD = 4  # batches of pictures that wait for the devices
T = TypeVar("T")


@dataclass(frozen=True)
class Preparation:
    """How examples are encoded.

    Attributes:
      data: the source, and how its pictures are cropped; with `flip`, twins are stored too.
      captions: how many of an example's captions are kept.
      text_embeddings: whether the text encoders' output is stored.
      seed: of random crops.
      dtype: of what is stored.
      precision: that the model computes in.
      batch: examples that are encoded at a time.
      shard_size: examples of the source in a shard.
    """

    data: Data
    captions: int = 1
    text_embeddings: bool = False
    seed: int = 0
    dtype: str = "float16"
    precision: str = "float32"
    batch: int = 16
    shard_size: int = 1024


def plan_of(
    how: Preparation, examples: Examples, model: Folder, pipeline: LatentPipeline
) -> dict[str, Any]:
    """All that decides what is stored."""
    data = how.data
    parts = ("vae", "tokenizer") + (("text_encoder",) if how.text_embeddings else ())
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
        **{name: getattr(data, name) for name in ("resolution", "crop", "flip")},
        "captions": how.captions,
        "text_embeddings": how.text_embeddings,
        "dtype": how.dtype,
        "precision": how.precision,
        "shard_size": how.shard_size,
        "seed": how.seed if data.crop == "random" else None,
        "fields": pipeline.prepared_fields(
            1 + data.flip, how.captions, how.text_embeddings, how.dtype
        ),
    }


def prepare(
    how: Preparation,
    model: Folder,
    pipeline: LatentPipeline,
    out: Path,
    part: tuple[int, int] = (0, 1),
) -> dict[str, Any] | None:
    """Encodes every example, or goes on with it.

    Args:
      how: what is stored.
      model: whose autoencoder and text encoders encode.
      pipeline: the same, for pictures of the size that is asked for.
      out: the folder to make.
      part: which of how many parts of the shards to make.

    Returns:
      What the folder holds; None: other parts of it are still to be made.

    Raises:
      InputError: the source cannot be read or the folder written, or it was begun otherwise.
    """
    data, examples = how.data, open_examples(how.data)
    say_rejects(examples)
    plan = plan_of(how, examples, model, pipeline)
    store = Store(out, plan)
    mine = range(part[0], store.shards, part[1])
    todo, used, rejects = [], 0, Rejects()
    for shard in mine:
        if (passed_over := store.done(shard)) is None:
            todo.append(shard)
        else:
            used += store.count(shard) - passed_over.total
            rejects.update(passed_over)
    if todo or not store.has_empty:
        encoder = Encoder(pipeline, model, how.precision, plan["fields"], how.batch)
        if not store.has_empty:
            store.write_empty(encoder.empty_prompt())
        cutter = Cutter(examples, Transform(data.resolution, data.crop, data.flip), how.seed)
        total, done = sum(map(store.count, mine)), used + rejects.total
        with (
            tqdm(total=total, initial=done, unit=" images", smoothing=0.05) as bar,
            closing(encode(store, todo, encoder, cutter, data, bar)) as made,
        ):
            for count, passed_over in made:
                used += count
                rejects.update(passed_over)
                rejects.check(used, data.max_rejects, data.source, FEW)
    for line in rejects.lines():
        print(f"note: {data.source}: passed over {line}", file=sys.stderr)
    return store.finish(examples.rejects, data.max_rejects)


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
