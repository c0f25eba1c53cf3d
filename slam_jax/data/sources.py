"""Opens what a config's `data` group, or a command line, names as its source of examples."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from slam_jax.base.errors import InputError
from slam_jax.data.batches import Source
from slam_jax.data.examples import Examples, Filters
from slam_jax.data.image_folder import ImageFolder
from slam_jax.data.image_text import ImageText, Transform
from slam_jax.data.options import Data
from slam_jax.data.photographs import Photographs
from slam_jax.data.prepared import PLAN_FILE, Prepared
from slam_jax.data.tar_shards import TarShards
from slam_jax.data.tfds_examples import TfdsExamples

TFDS = "tfds:"
OPTIONS = {  # what a command line calls the options of `config.Data` that say how to open a source
    "min_size": "leave out images whose shorter side has fewer pixels",
    "max_watermark": "leave out images with a larger pwatermark",
    "max_rejects": "share of damaged examples at which to stop",
    "caption_key": "where captions are in json, metadata.jsonl or TFDS",
    "image_key": "where images are in TFDS",
    "split": "of TFDS, such as train[:10%%]",
    "data_dir": "of TFDS",
    "index": "folder for what is known of tar shards",
}
# Which options a kind of source reads; set for another kind, they are refused.
ALWAYS = ("source", "workers")
DRAWN = ("resolution", "flip", "captions", "empty_prompts")
IMAGES = (*DRAWN, "crop", "min_size", "caption_key", "max_rejects")
READS = {
    "digits": ALWAYS,
    "photographs": (*ALWAYS, *DRAWN, "crop"),
    "folder": (*ALWAYS, *IMAGES, "max_watermark"),
    "tar": (*ALWAYS, *IMAGES, "max_watermark", "index"),
    "tfds": (*ALWAYS, *IMAGES, "image_key", "split", "data_dir"),
    "prepared": (*ALWAYS, *DRAWN, "max_rejects"),
}


def kind_of(source: str) -> str:
    """Which of the kinds in `READS` a source is.

    Raises:
      InputError: none of them.
    """
    if source in ("digits", "photographs"):
        return source
    if source.startswith(TFDS):
        return "tfds"
    folder = _home(source)
    if os.path.isdir(folder):  # noqa: PTH112 - a long pattern is no path, which Path would say
        folder = Path(folder)
        if (folder / PLAN_FILE).exists():
            return "prepared"
        return "tar" if any(folder.glob("*.tar")) else "folder"
    if source.endswith((".tar", ".tar.gz", ".tgz")) or any(c in source for c in "*?[{:"):
        return "tar"
    found = "a file" if os.path.isfile(folder) else "no such folder"  # noqa: PTH113 - as above
    raise InputError(
        f"{source!r}: {found}; expected a folder (of images, of .tar shards, or made by "
        "slam-jax prepare), a pattern such as 'data/{00000..00331}.tar', tfds:NAME, or photographs"
    )


def _home(source: str) -> str:
    """Resolves "~"; one of nobody stays as it is."""
    return os.path.expanduser(source)  # noqa: PTH111 - Path would refuse it


def check_used(data: Data, kind: str) -> None:
    """No option is without effect.

    Raises:
      InputError: one is set that means nothing to this kind of source.
    """
    for field in dataclasses.fields(Data):
        given = getattr(data, field.name)
        if field.name not in READS[kind] and given != field.default:
            why = "was decided when it was made" if kind == "prepared" else "means nothing to it"
            raise InputError(
                f"{data.source}: {field.name} = {given!r} {why}; leave it at {field.default!r}"
            )


def open_examples(data: Data, judged: bool = True) -> Examples:
    """Images with captions.

    Args:
      data: which.
      judged: refuse what is damaged beyond `max_rejects`.

    Raises:
      InputError: there is no such source, it is not one of images, or too much of it is damaged.
    """
    kind, source = kind_of(data.source), data.source
    if kind == "digits":
        raise InputError("digits: they have no captions; expected another source")
    if kind == "prepared":
        raise InputError(f"{source}: latents that are prepared already; name what they are made of")
    check_used(data, kind)
    filters = Filters(data.min_size, data.max_watermark)
    if kind == "photographs":
        examples = Photographs()
    elif kind == "tfds":
        name = source.removeprefix(TFDS)
        examples = TfdsExamples(
            name, data.split, data.data_dir, data.image_key, data.caption_key, filters
        )
    elif kind == "folder":
        examples = ImageFolder(Path(_home(source)), filters, data.caption_key)
    else:
        index = Path(_home(data.index)) if data.index else None
        examples = TarShards(source, filters, data.caption_key, index)
    if judged:
        examples.rejects.check(len(examples), data.max_rejects, source)
    return examples


def say_rejects(examples: Examples) -> None:
    """Says on stderr what had to be passed over when a source was opened."""
    for line in examples.rejects.lines():
        print(f"note: {examples.name}: passed over {line}", file=sys.stderr)


def open_source(
    data: Data, tokenize: Callable[[Sequence[str]], Int[np.ndarray, "N ..."]]
) -> Source:
    """Examples to train a text-to-image student on; says what had to be passed over.

    Args:
      data: which.
      tokenize: texts -> token ids, one row for each.

    Raises:
      InputError: as `open_examples`.
    """
    if kind_of(data.source) == "prepared":
        check_used(data, "prepared")
        return Prepared(Path(_home(data.source)), data.flip, data.captions, data.empty_prompts)
    transform = Transform(data.resolution, data.crop, data.flip, data.captions, data.empty_prompts)
    examples = open_examples(data)
    say_rejects(examples)
    return ImageText(examples, transform, tokenize)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Flags that say how a source is opened."""
    group = parser.add_argument_group("options of the source")
    for name, meaning in OPTIONS.items():
        default = next(f.default for f in dataclasses.fields(Data) if f.name == name)
        group.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=meaning
        )


def data_of(arguments: argparse.Namespace, source: str, **more) -> Data:
    """The options of a command line as those of a config.

    Args:
      arguments: parsed by a parser with `add_source_options`.
      source: its name.
      more: other options of `config.Data`.

    Raises:
      InputError: an impossible value; names the flag.
    """
    given = {name: getattr(arguments, name) for name in OPTIONS}
    try:
        return Data(source=source, **given, **more)
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise InputError(f"--{name.replace('_', '-')} {rest}") from error
