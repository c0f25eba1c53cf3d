"""Encodes a source of images with captions once, for training that need not do it in every step.

slam-jax prepare --source "data/{00000..00331}.tar" --model MODEL --out data/latents

What it makes is described in slam_jax/data/prepared.py, and is a source of data itself. Killed, the
same command goes on where it was. Several processes or machines share the work, each with a --part
of its own and all with the same --out.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from slam_jax.base.errors import BackendError, InputError
from slam_jax.config.options import DTYPES, SEEDS, Data
from slam_jax.data.examples import Examples
from slam_jax.data.image_text import CROPS, Transform
from slam_jax.data.prepared import FORMAT
from slam_jax.data.prepared_write import Store, check_folder
from slam_jax.data.rejects import FEW, Rejects
from slam_jax.data.sources import add_source_options, data_of, open_examples, say_rejects
from slam_jax.data.views import Cutter, groups, read_ahead
from slam_jax.families.load import read_pipeline
from slam_jax.families.sd_pipeline import StableDiffusionPipeline
from slam_jax.formats.diffusers_folder import Folder, fingerprints, resolve
from slam_jax.parallel import runtime
from slam_jax.recipes.encode import Encoder, fields_of

STORED = ("float16", "bfloat16")
AHEAD = 4  # batches of pictures that wait for the devices
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
        "resolution": arguments.resolution,
        "crop": arguments.crop,
        "flip": arguments.flip,
        "captions": arguments.captions,
        "text_embeddings": arguments.text_embeddings,
        "seed": arguments.seed if arguments.crop == "random" else None,
        "dtype": arguments.dtype,
        "precision": arguments.precision,
        "shard_size": arguments.shard_size,
        "fields": fields_of(
            pipeline,
            1 + arguments.flip,
            arguments.captions,
            arguments.text_embeddings,
            arguments.dtype,
        ),
    }


def part_of(text: str) -> tuple[int, int]:
    """Which of how many parts, from 0 on: "1/4" is the second of four.

    Raises:
      InputError: not that.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = map(int, match.groups()) if match else (0, 0)
    if part >= parts:
        raise InputError(f"--part {text}: expected I/N with I from 0 to N - 1, such as 0/4")
    return part, parts


def check_options(arguments: argparse.Namespace) -> None:
    """Refuses what is wrong whatever the model and the source.

    Raises:
      InputError: names the option.
    """
    for name in ("captions", "batch", "shard_size"):
        if getattr(arguments, name) < 1:
            option = name.replace("_", "-")
            raise InputError(f"--{option} {getattr(arguments, name)}: expected 1 or more")
    if arguments.seed is not None and not 0 <= arguments.seed < SEEDS:
        raise InputError(f"--seed {arguments.seed}: expected 0 to {SEEDS - 1}")
    if arguments.seed is not None and arguments.crop != "random":
        raise InputError("--seed: decides random crops only; leave it out, or add --crop random")
    arguments.seed = arguments.seed or 0
    check_folder(arguments.out)


def read_model(arguments: argparse.Namespace) -> tuple[Folder, StableDiffusionPipeline]:
    """The model, for pictures of the size that is asked for.

    Raises:
      InputError: there is none, or its VAE does not take the size.
    """
    model = resolve(arguments.model, arguments.revision, arguments.variant)
    pipeline, size = read_pipeline(model), arguments.resolution
    factor = pipeline.vae.downscale
    if size < factor or size % factor:
        raise InputError(
            f"--resolution {size}: expected a positive multiple of {factor}, the pixels for which "
            f"the VAE of {model.name} has one latent"
        )
    shape = (size // factor, size // factor, pipeline.vae.latent_channels)
    return model, replace(pipeline, latent_shape=shape)


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
) -> Iterator[tuple[int, Rejects]]:
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


def run(arguments: argparse.Namespace) -> str:
    """Prepares what the command line asks for, and returns what to say."""
    check_options(arguments)
    runtime.probe()
    part, parts = part_of(arguments.part or f"{jax.process_index()}/{jax.process_count()}")
    model, pipeline = read_model(arguments)
    more = {name: getattr(arguments, name) for name in ("resolution", "crop", "flip", "workers")}
    data = data_of(arguments, arguments.source, **more)
    examples = open_examples(data)
    say_rejects(examples)
    plan = plan_of(arguments, data, examples, model, pipeline)
    store = Store(arguments.out, plan)
    mine = range(part, store.shards, parts)
    todo, used, rejects = [], 0, Rejects()
    for shard in mine:
        if (passed_over := store.done(shard)) is None:
            todo.append(shard)
        else:
            used += store.count(shard) - passed_over.total
            rejects.update(passed_over)
    if todo or not store.has_empty:
        batch = arguments.batch
        encoder = Encoder(pipeline, model, arguments.precision, plan["fields"], batch)
        if not store.has_empty:
            store.write_empty(encoder.empty_prompt())
        transform = Transform(arguments.resolution, arguments.crop, arguments.flip)
        cutter = Cutter(examples, transform, arguments.seed)
        total = sum(map(store.count, mine))
        done = used + rejects.total
        with (
            tqdm(total=total, initial=done, unit=" images", smoothing=0.05) as bar,
            closing(encode(store, todo, encoder, cutter, data, bar)) as made,
        ):
            for count, passed_over in made:
                used += count
                rejects.update(passed_over)
                rejects.check(used, data.max_rejects, arguments.source, FEW)
    for line in rejects.lines():
        print(f"note: {arguments.source}: passed over {line}", file=sys.stderr)
    if (info := store.finish(examples.rejects, data.max_rejects)) is None:
        return f"part {part}/{parts} of {arguments.out} is done; others are not yet"
    counts = info["counts"]
    return f"wrote {arguments.out}: {counts['examples']} of {counts['source']} examples"


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="slam-jax prepare",
        description="Encode images and captions once; training reads the folder as its source.",
    )
    add = parser.add_argument
    add("--source", required=True, help="shards, folder, tfds:NAME or photographs")
    add("--model", required=True, help="diffusers folder or hub repository: the teacher")
    add("--revision", default="", help="commit, tag or branch of a repository")
    add("--variant", default="", help='such as "fp16", of the weight files')
    add("--out", type=Path, required=True, help="folder to make, or to go on with")
    add("--resolution", type=int, default=512, help="of the pictures, in pixels")
    add("--crop", choices=CROPS, default="center", help="where the square is taken from")
    add("--flip", action="store_true", help="store each picture's mirrored twin too")
    add("--captions", type=int, default=1, help="how many of an example's captions to keep")
    add("--text-embeddings", action="store_true", help="store what the text encoders give too")
    add("--seed", type=int, help="of random crops; default: 0")
    add("--dtype", choices=STORED, default="float16", help="of what is stored")
    add("--precision", choices=DTYPES, default="float32", help="that the model computes in")
    add("--batch", type=int, default=16, help="examples that are encoded at a time")
    add("--shard-size", type=int, default=1024, help="examples of the source in a shard")
    add("--workers", type=int, default=0, help="processes that read images; 0: threads")
    add("--part", default="", help="I/N: make every N-th shard from I on; others make the others")
    add_source_options(parser)
    runtime.configure()
    try:
        print(run(parser.parse_args(argv)))
    except (InputError, BackendError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nstopped; finished shards are kept, the same command goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
