"""Says what a source of images with captions holds, before anything is trained on it.

slam-jax inspect "data/{00000..00331}.tar" [--out sheet.png] [--min-size 512]

Counts, sizes, captions, and what has to be passed over; of a folder that slam-jax prepare made,
what it was made of. What only reading the images tells is told of a random sample.
"""

import argparse
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from slam_jax.base.errors import InputError
from slam_jax.commands.command import check_counts, check_png, check_seed, parser_of, path, refusals
from slam_jax.data import images
from slam_jax.data.examples import Examples
from slam_jax.data.metadata import printable
from slam_jax.data.prepared import read_info
from slam_jax.data.rejects import Rejects, all_usable
from slam_jax.data.sources import add_source_options, check_used, data_of, kind_of, open_examples
from slam_jax.drawing import pictures

RESOLUTIONS = (256, 512, 768, 1024)  # that models are trained at
TILE, LINE, COLUMNS = 192, 18, 8  # of the contact sheet: pixels of a picture and of its caption
SHEET = 48  # pictures
OF_PICTURES = {"out": Path("contact_sheet.png"), "sample": 256, "seed": 0}  # options, as usual
CAPTIONS, LETTERS = 8, 120  # that are printed, and of each
WIDTH = 14  # of the names of facts
Fact = tuple[str, str]


class Look(NamedTuple):
    """What reading an example tells.

    Attributes:
      name, captions: its own.
      size: height and width of its image.
      thumbnail: TILE pixels on the longer side.
    """

    name: str
    captions: tuple[str, ...]
    size: tuple[int, int]
    thumbnail: Image.Image


def look_at_some(examples: Examples, count: int, seed: int) -> tuple[list[Look], Rejects]:
    """A random sample in the source's order, and what of it cannot be used.

    Args:
      count: how many are read, at most.
      seed: decides which.
    """

    def look(index: int) -> Look:
        example = examples[index]
        if isinstance(example.image, bytes):
            size = images.read_size(example.image, example.name)
            picture = images.decode(example.image, example.name, shorter=TILE)
        else:
            size, picture = example.image.shape[:2], Image.fromarray(example.image)
        # At least one pixel wide and high, which `ImageOps.contain` of older Pillows is not.
        picture.thumbnail((TILE, TILE))
        return Look(example.name, example.captions, size, picture)

    count, rejects = min(count, len(examples)), Rejects()
    chosen = np.random.default_rng(seed).choice(len(examples), count, replace=False, shuffle=False)
    return all_usable(look, np.sort(chosen).tolist(), rejects), rejects


def describe(examples: Examples, looks: Sequence[Look], rejects: Rejects) -> Iterator[Fact]:
    """Facts of a source of images with captions.

    Args:
      looks: at some of the examples.
      rejects: those of the same sample that cannot be used.
    """
    yield "examples", f"{len(examples):,}"
    yield from describe_rejects(examples.rejects, "passed over")
    sample = len(looks) + rejects.total
    yield "read", f"{sample:,} of them, of which {len(looks):,} can be used"
    yield from describe_rejects(rejects, "not used")
    if not looks:
        return
    known = getattr(examples, "sizes", None)  # of all, where the source has an index
    sizes = np.array([one.size for one in looks]) if known is None else known
    shorter, (height, width) = sizes.min(axis=1), sizes.T
    which = "sampled" if known is None else "all"
    yield "shorter side", f"{spread(shorter)} pixels, of {len(sizes):,} images ({which})"
    counts = (f"{np.sum(shorter < edge):,} below {edge}" for edge in RESOLUTIONS)
    yield "", f"of which {', '.join(counts)}"
    longest = np.sum(sizes.max(axis=1) > 2 * shorter)
    yield "width / height", f"{spread(width / height)}; {longest:,} beyond 2:1 or 1:2"
    lengths = np.array([len(caption) for one in looks for caption in one.captions])
    yield "caption length", f"{spread(lengths)} characters, of {len(lengths):,} captions (sampled)"
    yield "captions", f"{spread(np.array([len(one.captions) for one in looks]))} of an example"


def describe_rejects(rejects: Rejects, name: str) -> Iterator[Fact]:
    """How many of them filters took out, and each reason with the first of its kind."""
    if rejects.total:
        filtered = rejects.total - rejects.damaged
        yield name, f"{rejects.total:,}: {rejects.damaged:,} damaged, {filtered:,} by filters"
        yield from (("", f"  {line}") for line in rejects.lines())


def spread(values: np.ndarray) -> str:
    """Their ends and their middle."""
    digits = 0 if values.dtype.kind == "i" else 2
    ends = (f"{value:,.{digits}f}" for value in np.quantile(values, (0, 0.5, 1)))
    return "min {}, median {}, max {}".format(*ends)


def evenly(looks: Sequence[Look], count: int) -> list[Look]:
    """At most that many, from all over the source."""
    count = min(count, len(looks))
    return [looks[i * len(looks) // count] for i in range(count)]


def one_line(caption: str, letters: int = LETTERS) -> str:
    """Its beginning, without line breaks."""
    return printable(textwrap.shorten(caption, letters, placeholder="…"))


def draw_sheet(looks: Sequence[Look]) -> Image.Image:
    """Thumbnails in rows, with the beginning of a caption under each."""
    font, tiles = ImageFont.load_default(LINE - 6), []
    for one in evenly(looks, SHEET):
        tile = Image.new("RGB", (TILE, TILE + LINE), "white")
        tile.paste(ImageOps.pad(one.thumbnail, (TILE, TILE), color="white"))
        line = one_line(one.captions[0], TILE // 6)  # a letter is about 6 pixels wide
        ImageDraw.Draw(tile).text((2, TILE + 1), line, fill="black", font=font)
        tiles.append(np.asarray(tile))
    return pictures.sheet(tiles, COLUMNS)


def describe_prepared(folder: Path, info: Mapping[str, Any]) -> Iterator[Fact]:
    """Facts of a folder of latents, which slam-jax prepare made or a teacher drew.

    Args:
      folder: where it is.
      info: the contents of its info.json.
    """
    counts, model = info["counts"], info["model"]
    yield "made from", f"{info['source']}, {counts['source']:,} examples"
    drawn = {name: info[name] for name in ("teacher_steps", "teacher_w", "seed") if name in info}
    how = drawn if "teacher_w" in info else info["filters"]
    yield "", f"with {', '.join(f'{name} = {value:g}' for name, value in how.items())}"
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    yield "examples", f"{counts['examples']:,} in {counts['shards']:,} shards, {size / 1e9:,.3g} GB"
    names = [model["path"], *(model[key] for key in ("revision", "variant") if model.get(key))]
    yield "model", f"{', '.join(names)}, computed in {info['precision']}"
    twins = ", with mirrored twins" if info["flip"] else ""
    crops = f", {info['crop']} crops" if "crop" in info else ""
    yield "pictures", f"{info['resolution']} pixels{crops}{twins}"
    yield "captions", f"up to {info['captions']} of an example"
    for i, (name, field) in enumerate(info["fields"].items()):
        yield "" if i else "fields", f"{name}: {field['dtype']} {field['shape']}"
    yield from describe_rejects(Rejects.from_dict(info["rejects"]), "passed over")


def show(facts: Iterator[Fact]) -> None:
    for name, fact in facts:
        print(f"{name:{WIDTH}}  {fact}".rstrip())


def work(arguments: argparse.Namespace) -> None:
    """Prints what the command line asks for, and draws the contact sheet.

    Raises:
      InputError: an impossible option, no such source, or nothing of it can be used.
    """
    check_counts(arguments, "sample")
    check_seed(arguments.seed)
    check_png(arguments.out)
    data = data_of(arguments, arguments.source)
    if kind_of(data.source) == "prepared":
        check_used(data, "prepared")
        for name, usual in OF_PICTURES.items():
            if (given := getattr(arguments, name)) != usual:
                raise InputError(f"--{name} {given}: latents are no pictures; leave it out")
        folder = Path(data.source).expanduser()
        show(describe_prepared(folder, read_info(folder)))
        return
    examples = open_examples(data, judged=False)  # what there is to see is shown first
    looks, rejects = look_at_some(examples, arguments.sample, arguments.seed)
    show(describe(examples, looks, rejects))
    if not looks:
        raise InputError(f"{data.source}: nothing of the sample can be used")
    for one in evenly(looks, CAPTIONS):
        print(f"  {one.name}: {one_line(one.captions[0])}")
    pictures.save(draw_sheet(looks), arguments.out)
    print(f"wrote {arguments.out}")
    examples.rejects.check(len(examples), data.max_rejects, data.source)
    rejects.check(len(looks), data.max_rejects, f"{data.source} (sampled)")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("inspect", "What a source of images with captions holds.")
    add = parser.add_argument
    add("source", help="shards, folder, tfds:NAME, emoji:FOLDER, photographs, or prepared latents")
    add("--out", type=path, help="file for the contact sheet")
    add("--sample", type=int, help="examples to read")
    add("--seed", type=int, help="decides which")
    parser.set_defaults(**OF_PICTURES)
    add_source_options(parser)
    with refusals():  # and not `run`, as no device is needed
        work(parser.parse_args(argv))
