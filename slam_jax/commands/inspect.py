"""Says what a source of images with captions holds, before anything is trained on it.

slam-jax inspect "data/{00000..00331}.tar" [--out sheet.png] [--min-size 512]

Counts, sizes, captions, and what has to be passed over; of a folder that slam-jax prepare made,
what it was made of. What only reading the images tells is told of a random sample.
"""

import argparse
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont

from slam_jax.base.errors import InputError
from slam_jax.commands.command import check_counts, check_png, check_seed, parser_of, refusals
from slam_jax.config.options import Data
from slam_jax.data import images
from slam_jax.data.examples import Examples
from slam_jax.data.metadata import printable
from slam_jax.data.prepared import read_info
from slam_jax.data.rejects import Rejected, Rejects
from slam_jax.data.sources import add_source_options, check_used, data_of, kind_of, open_examples
from slam_jax.drawing import pictures

RESOLUTIONS = (256, 512, 768, 1024)  # that models are trained at
TILE, LINE, COLUMNS = 192, 18, 8  # of the contact sheet: pixels of a picture and of its caption
SAMPLE = 256  # examples
SHEET = 48  # pictures
SHEET_FILE = Path("contact_sheet.png")
CAPTIONS, LETTERS = 8, 120  # that are printed, and of each
THREADS = 16
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


def look(examples: Examples, index: int) -> Look | Rejected:
    """Reads an example, or says why it cannot be used."""
    try:
        example = examples[index]
        if isinstance(example.image, bytes):
            size = images.read_size(example.image, example.name)
            picture = images.decode(example.image, example.name, shorter=TILE)
        else:
            size, picture = example.image.shape[:2], Image.fromarray(example.image)
    except Rejected as rejected:
        return rejected
    longer = max(picture.size)
    fitted = [max(round(side * TILE / longer), 1) for side in picture.size]
    return Look(example.name, example.captions, size, picture.resize(fitted))


def look_at_some(examples: Examples, count: int, seed: int) -> tuple[list[Look], Rejects]:
    """A random sample in the source's order, and what of it cannot be used.

    Args:
      count: how many are read, at most.
      seed: decides which.
    """
    count = min(count, len(examples))
    chosen = np.random.default_rng(seed).choice(len(examples), count, replace=False, shuffle=False)
    looks, rejects = [], Rejects()
    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(lambda index: look(examples, index), np.sort(chosen).tolist()):
            if isinstance(found, Rejected):
                rejects.add(found)
            else:
                looks.append(found)
    return looks, rejects


def describe(examples: Examples, looks: Sequence[Look], rejects: Rejects) -> Iterator[Fact]:
    """Facts of a source of images with captions.

    Args:
      looks: at some of the examples.
      rejects: those of the same sample that cannot be used.
    """
    sample = len(looks) + rejects.total
    yield "examples", f"{len(examples):,}"
    yield from describe_rejects(examples.rejects, "passed over")
    yield "read", f"{sample:,} of them, of which {len(looks):,} can be used"
    yield from describe_rejects(rejects, "not used")
    if looks:
        known = getattr(examples, "sizes", None)  # of all, where the source has an index
        sizes = np.array([one.size for one in looks]) if known is None else known
        yield from describe_sizes(sizes, "sampled" if known is None else "all")
        yield from describe_captions([one.captions for one in looks])


def describe_rejects(rejects: Rejects, name: str) -> Iterator[Fact]:
    """How many of them filters took out, and each reason with the first of its kind."""
    if rejects.total:
        filtered = rejects.total - rejects.damaged
        yield name, f"{rejects.total:,}: {rejects.damaged:,} damaged, {filtered:,} by filters"
        yield from (("", f"  {line}") for line in rejects.lines())


def describe_sizes(sizes: Int[np.ndarray, "N 2"], which: str) -> Iterator[Fact]:
    """Facts of heights and widths.

    Args:
      which: images these are, such as "all".
    """
    shorter, (height, width) = sizes.min(axis=1), sizes.T
    yield "shorter side", f"{spread(shorter)} pixels, of {len(sizes):,} images ({which})"
    counts = (f"{np.sum(shorter < edge):,} below {edge}" for edge in RESOLUTIONS)
    yield "", f"of which {', '.join(counts)}"
    longest = sizes.max(axis=1) > 2 * shorter
    yield "width / height", f"{spread(width / height)}; {np.sum(longest):,} beyond 2:1 or 1:2"


def describe_captions(captions: Sequence[tuple[str, ...]]) -> Iterator[Fact]:
    """Facts of the captions of some examples."""
    lengths = np.array([len(caption) for several in captions for caption in several])
    yield "caption length", f"{spread(lengths)} characters, of {len(lengths):,} captions (sampled)"
    yield "captions", f"{spread(np.array([len(several) for several in captions]))} of an example"


def spread(values: np.ndarray) -> str:
    """Their ends and their middle."""
    digits = 0 if values.dtype.kind == "i" else 2
    ends = (f"{value:,.{digits}f}" for value in np.quantile(values, (0, 0.5, 1)))
    return "min {}, median {}, max {}".format(*ends)


def evenly(looks: Sequence[Look], count: int) -> list[Look]:
    """At most that many, from all over the source."""
    count = min(count, len(looks))
    return [looks[i * len(looks) // count] for i in range(count)]


def one_line(caption: str) -> str:
    """Its beginning, without line breaks."""
    return printable(textwrap.shorten(caption, LETTERS, placeholder="…"))


def draw_sheet(looks: Sequence[Look]) -> Image.Image:
    """Thumbnails in rows, with the beginning of a caption under each."""
    font = ImageFont.load_default(LINE - 6)
    tiles = []
    for one in evenly(looks, SHEET):
        tile = Image.new("RGB", (TILE, TILE + LINE), "white")
        left, top = ((TILE - side) // 2 for side in one.thumbnail.size)
        tile.paste(one.thumbnail, (left, top))
        line = fitting(one_line(one.captions[0]), font)
        ImageDraw.Draw(tile).text((2, TILE + 1), line, fill="black", font=font)
        tiles.append(np.asarray(tile))
    return pictures.sheet(tiles, COLUMNS)


def fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of the beginning as is no wider than a picture."""
    if font.getlength(text) <= TILE - 4:
        return text
    while text and font.getlength(f"{text}…") > TILE - 4:
        text = text[:-1]
    return f"{text}…"


def describe_prepared(folder: Path, info: Mapping[str, Any]) -> Iterator[Fact]:
    """Facts of a folder that slam-jax prepare made.

    Args:
      folder: where it is.
      info: the contents of its info.json.
    """
    counts, model = info["counts"], info["model"]
    yield "made from", f"{info['source']}, {counts['source']:,} examples"
    used = (f"{name} = {value:g}" for name, value in info["filters"].items())
    yield "", f"with {', '.join(used)}"
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    yield "examples", f"{counts['examples']:,} in {counts['shards']:,} shards, {size / 1e9:,.3g} GB"
    revision, variant = (model.get(key) for key in ("revision", "variant"))
    of = "".join(f", {what}" for what in (revision, variant) if what)
    yield "model", f"{model['path']}{of}, computed in {info['precision']}"
    twins = ", with mirrored twins" if info["flip"] else ""
    yield "pictures", f"{info['resolution']} pixels, {info['crop']} crops{twins}"
    yield "captions", f"up to {info['captions']} of an example"
    for i, (name, field) in enumerate(info["fields"].items()):
        yield "" if i else "fields", f"{name}: {field['dtype']} {field['shape']}"
    yield from describe_rejects(Rejects.from_dict(info["rejects"]), "passed over")


def check_options(arguments: argparse.Namespace) -> None:
    """Refuses what is wrong whatever the source.

    Raises:
      InputError: names the option.
    """
    check_counts(arguments, "sample")
    check_seed(arguments.seed)
    check_png(arguments.out)


def show(facts: Iterator[Fact]) -> None:
    for name, fact in facts:
        print(f"{name:{WIDTH}}  {fact}".rstrip())


def show_prepared(arguments: argparse.Namespace, data: Data) -> None:
    """Prints what a folder of latents holds."""
    check_used(data, "prepared")
    for name, default in (("sample", SAMPLE), ("seed", 0)):
        if (given := getattr(arguments, name)) != default:
            raise InputError(f"--{name} {given}: nothing is sampled of latents; leave it out")
    folder = Path(data.source).expanduser()
    show(describe_prepared(folder, read_info(folder)))
    if arguments.out is not None:
        print(f"no {arguments.out}: latents are no pictures; make it of {data.source}'s own source")


def work(arguments: argparse.Namespace) -> None:
    """Prints what the command line asks for, and draws the contact sheet.

    Raises:
      InputError: there is no such source, or nothing of it can be used.
    """
    check_options(arguments)
    data = data_of(arguments, arguments.source)
    if kind_of(data.source) == "prepared":
        show_prepared(arguments, data)
        return
    examples = open_examples(data, judged=False)  # what there is to see is shown first
    looks, rejects = look_at_some(examples, arguments.sample, arguments.seed)
    show(describe(examples, looks, rejects))
    if not looks:
        raise InputError(f"{data.source}: nothing of the sample can be used")
    for one in evenly(looks, CAPTIONS):
        print(f"  {one.name}: {one_line(one.captions[0])}")
    out = arguments.out or SHEET_FILE
    pictures.save(draw_sheet(looks), out)
    print(f"wrote {out}")
    examples.rejects.check(len(examples), data.max_rejects, data.source)
    rejects.check(len(looks), data.max_rejects, f"{data.source} (sampled)")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("inspect", "What a source of images with captions holds.")
    parser.add_argument(
        "source", help="shards, folder, tfds:NAME, photographs, or prepared latents"
    )
    parser.add_argument("--out", type=Path, help=f"contact sheet; None: {SHEET_FILE}")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="examples to read")
    parser.add_argument("--seed", type=int, default=0, help="decides which")
    add_source_options(parser)
    with refusals():  # and not `run`, as no device is needed
        work(parser.parse_args(argv))
