"""The data sources there are, and how what a config's `data` group, or a command line, names is
opened.

A source of pictures gives `Examples`, which a family turns into batches. Any other gives batches
itself (`batches.Source`). Another one is added from outside:
`SOURCES["mine"] = Kind(matches=lambda name: name == "mine", open=lambda data: Mine(),
has_pictures=True, options="photographs")`.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from slam_jax.base.errors import InputError
from slam_jax.base.options import OptionError
from slam_jax.data import digits
from slam_jax.data.batches import Source
from slam_jax.data.emoji import open_emoji
from slam_jax.data.examples import Examples, Filters
from slam_jax.data.image_folder import ImageFolder
from slam_jax.data.image_text import ImageText, Transform
from slam_jax.data.options import Data
from slam_jax.data.photographs import Photographs
from slam_jax.data.prepared import PLAN_FILE, Prepared
from slam_jax.data.tar_shards import TarShards
from slam_jax.data.tfds_examples import TfdsExamples

TFDS, EMOJI, TEACHER = "tfds:", "emoji:", "teacher:"
# Of `Data`, those that a command line has too: they say how a source is opened.
OPENING = (
    "min_size",
    "max_watermark",
    "max_rejects",
    "caption_key",
    "image_key",
    "split",
    "data_dir",
    "index",
)


class Kind(NamedTuple):
    """A kind of source.

    Attributes:
      matches: whether a name, as a user gives it, is of one.
      open: opens it: `Examples` where it has pictures, else a `batches.Source`.
      has_pictures: which of the two.
      options: the kind whose options it reads, where it is none of those in `Data`.
    """

    matches: Callable[[str], bool]
    open: Callable[[Data], Any]
    has_pictures: bool = False
    options: str = ""


def _folder(source: str) -> Path | None:
    """The folder of that name; "~" of nobody stays as it is, and a long pattern is no path."""
    name = os.path.expanduser(source)  # noqa: PTH111 - Path would refuse it
    return Path(name) if os.path.isdir(name) else None  # noqa: PTH112 - as above


def _is_prepared(source: str) -> bool:
    folder = _folder(source)
    return folder is not None and (folder / PLAN_FILE).exists()


def _is_tar(source: str) -> bool:
    if (folder := _folder(source)) is not None:
        return any(folder.glob("*.tar"))
    return source.endswith((".tar", ".tar.gz", ".tgz")) or any(c in source for c in "*?[{:")


def _home(source: str) -> Path:
    return Path(os.path.expanduser(source))  # noqa: PTH111 - as above


def _filters(data: Data) -> Filters:
    return Filters(data.min_size, data.max_watermark)


def _open_tfds(data: Data) -> Examples:
    keys = data.split, data.data_dir, data.image_key, data.caption_key
    return TfdsExamples(data.source.removeprefix(TFDS), *keys, _filters(data))


def _index(data: Data) -> Path | None:
    return _home(data.index) if data.index else None


def _open_tar(data: Data) -> Examples:
    return TarShards(data.source, _filters(data), data.caption_key, _index(data))


def _open_emoji(data: Data) -> Examples:
    return open_emoji(_home(data.source.removeprefix(EMOJI)), data.split, _index(data))


def _open_teacher(data: Data) -> Source:
    raise InputError(
        f"{data.source}: a teacher's own pictures are for families with prepared latents, such as "
        "stable_diffusion; name another source"
    )


# The last that matches a name opens it: those that take many names come first here, and what is
# added from outside is asked before all.
SOURCES: dict[str, Kind] = {
    "folder": Kind(
        lambda name: _folder(name) is not None,
        lambda data: ImageFolder(_home(data.source), _filters(data), data.caption_key),
        True,
    ),
    "tar": Kind(_is_tar, _open_tar, True),
    "prepared": Kind(
        _is_prepared,
        lambda data: Prepared(_home(data.source), data.flip, data.captions, data.empty_prompts),
    ),
    "tfds": Kind(lambda name: name.startswith(TFDS), _open_tfds, True),
    "emoji": Kind(lambda name: name.startswith(EMOJI), _open_emoji, True),
    # A run of Stable Diffusion opens what it has drawn, which is "prepared".
    "teacher": Kind(lambda name: name.startswith(TEACHER), _open_teacher),
    "photographs": Kind(lambda name: name == "photographs", lambda data: Photographs(), True),
    "digits": Kind(lambda name: name == "digits", lambda data: digits.Source()),
}


def kind_of(source: str) -> str:
    """Which of SOURCES a name is of.

    Raises:
      InputError: none of them.
    """
    for name, kind in reversed(SOURCES.items()):
        if kind.matches(source):
            return name
    try:
        _home(source).stat()
        found = "a file"  # a folder is of a kind
    except PermissionError as error:
        found = f"cannot be read ({error.strerror})"
    except (OSError, ValueError):  # a long pattern is no path
        found = "no such folder"
    raise InputError(
        f"{source!r}: {found}; expected a folder (of images, of .tar shards, or made by "
        "slam-jax prepare), a pattern such as 'data/{00000..00331}.tar', tfds:NAME, emoji:FOLDER, "
        "teacher:PROMPTS, or one of "
        f"{', '.join(name for name in SOURCES if SOURCES[name].matches(name))}"
    )


def check_used(data: Data, kind: str) -> None:
    """Refuses options that a kind of source does not use.

    Raises:
      InputError: one is set that means nothing to it.
    """
    reads_as = SOURCES[kind].options or kind
    for field in dataclasses.fields(Data):
        given = getattr(data, field.name)
        if reads_as not in field.metadata.get("read_by", (reads_as,)) and given != field.default:
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
    kind = kind_of(data.source)
    if not SOURCES[kind].has_pictures:
        raise InputError(f"{data.source}: of kind {kind}, expected pictures with captions")
    check_used(data, kind)
    examples = SOURCES[kind].open(data)
    if judged:
        examples.rejects.check(len(examples), data.max_rejects, data.source)
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
    if (kind := kind_of(data.source)) in ("prepared", "teacher"):
        check_used(data, kind)
        return SOURCES[kind].open(data)
    transform = Transform(data.resolution, data.crop, data.flip, data.captions, data.empty_prompts)
    examples = open_examples(data)
    say_rejects(examples)
    return ImageText(examples, transform, tokenize)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Flags that say how a source is opened."""
    group = parser.add_argument_group("options of the source")
    for field in dataclasses.fields(Data):
        if field.name in OPENING:
            group.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=type(field.default),
                default=field.default,
                help=field.metadata["doc"].replace("%", "%%"),
            )


def data_of(arguments: argparse.Namespace, source: str, **more: Any) -> Data:
    """The options of a command line as those of a config.

    Args:
      arguments: parsed by a parser with `add_source_options`.
      source: its name.
      more: other options of `Data`.

    Raises:
      InputError: an impossible value; names the flag.
    """
    given = {name: getattr(arguments, name) for name in OPENING}
    try:
        return Data(source=source, **given, **more)
    except OptionError as error:
        flag = f"--{error.key.replace('_', '-')}"
        raise InputError(f"{flag} = {error.value!r}, expected {error.expected}") from error
