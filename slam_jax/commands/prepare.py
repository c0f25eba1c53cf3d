"""Encodes a source of images with captions once, for training that need not do it in every step.

slam-jax prepare --source "data/{00000..00331}.tar" --model MODEL --out data/latents

What it makes is described in slam_jax/data/prepared.py, and is a source of data itself. Killed, the
same command goes on where it was. Several processes or machines share the work, each with a --part
of its own and all with the same --out.

`slam-jax prepare emoji` makes a source of captioned emoji: see prepare_emoji.py.
"""

import argparse
import re
import sys

import jax

from slam_jax.base.errors import InputError, prefixed
from slam_jax.commands import prepare_emoji
from slam_jax.commands.command import (
    add_version_options,
    check_counts,
    check_seed,
    parser_of,
    path,
    run,
)
from slam_jax.config.options import DTYPES
from slam_jax.data.image_text import CROPS
from slam_jax.data.prepared_write import check_folder
from slam_jax.data.sources import add_source_options, data_of
from slam_jax.families.latent_pipeline import LatentPipeline
from slam_jax.families.published_model import PublishedModel
from slam_jax.families.registry import reader_of
from slam_jax.formats.diffusers_folder import Folder, resolve
from slam_jax.parallel import runtime
from slam_jax.recipes.prepare import Preparation, prepare

STORED = ("float16", "bfloat16")
# Options that are those of a Preparation.
HOW = ("captions", "text_embeddings", "seed", "dtype", "precision", "batch", "shard_size")


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
    check_counts(arguments, "captions", "batch", "shard_size")
    check_seed(arguments.seed or 0)
    if arguments.seed is not None and arguments.crop != "random":
        raise InputError("--seed: decides random crops only; leave it out, or add --crop random")
    arguments.seed = arguments.seed or 0
    check_folder(arguments.out)


def read_model(arguments: argparse.Namespace) -> tuple[Folder, LatentPipeline]:
    """The model, for pictures of the size that is asked for.

    Raises:
      InputError: there is none, or it has no pictures of the size.
    """
    model = resolve(arguments.model, arguments.revision, arguments.variant)
    family, size = reader_of(model.path), arguments.resolution
    if family is None or not issubclass(family, PublishedModel):
        raise InputError(f"--model {model.name}: expected a folder of diffusers, or one on the hub")
    family.read_pipeline(model, None, None)  # what is wrong with it whatever the size
    with prefixed(f"--resolution {size}: "):
        return model, family.read_pipeline(model, size, size)


def work(arguments: argparse.Namespace) -> None:
    """Prepares what the command line asks for, or goes on with it; says what was made."""
    check_options(arguments)
    runtime.probe()
    part, parts = part_of(arguments.part or f"{jax.process_index()}/{jax.process_count()}")
    model, pipeline = read_model(arguments)
    more = {name: getattr(arguments, name) for name in ("resolution", "crop", "flip", "workers")}
    data = data_of(arguments, arguments.source, **more)
    how = Preparation(data, **{name: getattr(arguments, name) for name in HOW})
    info = prepare(how, model, pipeline, arguments.out, (part, parts))
    if info is None:
        print(f"part {part}/{parts} of {arguments.out} is done; others are not yet")
        return
    counts = info["counts"]
    print(f"wrote {arguments.out}: {counts['examples']} of {counts['source']} examples")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["emoji"]:
        prepare_emoji.main(argv[1:])
        return
    what = (
        "Encode images and captions once; training reads the folder as its source. "
        "slam-jax prepare emoji --help says how to make a set of captioned emoji."
    )
    parser = parser_of("prepare", what)
    add = parser.add_argument
    add("--source", required=True, help="shards, folder, tfds:NAME, emoji:FOLDER or photographs")
    add("--model", required=True, help="diffusers folder or hub repository: the teacher")
    add_version_options(parser)
    add("--out", type=path, required=True, help="folder to make, or to go on with")
    add("--resolution", type=int, default=512, help="of the pictures, in pixels")
    add("--crop", choices=CROPS, default="center", help="where the square is taken from")
    add("--flip", action="store_true", help="store each picture's mirrored twin too")
    add("--captions", type=int, default=1, help="how many of an example's captions to keep")
    add("--text-embeddings", action="store_true", help="store what the text encoders give too")
    add("--seed", type=int, help="of random crops; None: 0")
    add("--dtype", choices=STORED, default="float16", help="of what is stored")
    add("--precision", choices=DTYPES, default="float32", help="that the model computes in")
    add("--batch", type=int, default=16, help="examples that are encoded at a time")
    add("--shard-size", type=int, default=1024, help="examples of the source in a shard")
    add("--workers", type=int, default=0, help="processes that read images; 0: threads")
    add("--part", default="", help="I/N: make every N-th shard from I on; others make the others")
    add_source_options(parser)
    run(work, parser, argv)
