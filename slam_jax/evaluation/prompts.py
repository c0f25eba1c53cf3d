"""Lists of prompts to draw, each with a record of which prompts they are and how they were chosen:
without it nobody can repeat a measurement.

Papers that measure on COCO-2014 take one caption for each of 30,000 images. GigaGAN
(evaluation/data_util.py) draws the caption at random without a seed, others publish a list; DMD2's
is main/coco_eval/captions_coco14_test.txt, a text file that is read here as it is. From COCO's own
file the captions are chosen here so that everybody gets the same ones.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import parse_json
from slam_jax.data.options import PICTURES, Data
from slam_jax.data.sources import SOURCES, open_examples

KINDS = (
    "a text file with a prompt on each line, a captions JSON of COCO or the zip it is published "
    "in, or images with captions in a folder or in tar shards"
)
LINES = "each line that is not empty"
LOWEST_ID = "of each image the caption with the lowest id, images in the order of their ids"
FIRST = "of each example the first caption, in the order of the source"
THREADS = 16  # that wait for a disk or a net


@dataclass(frozen=True)
class PromptList:
    """Prompts in a fixed order.

    Attributes:
      texts: without white space at the ends, and a single space where there was more: CLIP's
        tokenizer sees no difference.
      record: JSON: "file", "sha256" (of the file, also where it is in a zip), "prompts_sha256" (of
        `texts`, joined by newlines), "count", "of" (how many there were to choose from), "chosen"
        (how, in words) and "seed".
    """

    texts: tuple[str, ...]
    record: dict[str, Any]


class _Source(NamedTuple):
    """All prompts that there are.

    Attributes:
      file: its name.
      sha256: of its content.
      count: how many.
      read: indices -> their texts.
      how: one was chosen for each image or line.
    """

    file: str
    sha256: str
    count: int
    read: Callable[[Sequence[int]], list[str]]
    how: str


def read_prompts(path: str | Path, count: int | None = None, seed: int = 0) -> PromptList:
    """Prompts from a file or a source of images with captions, of whichever kind it is.

    Args:
      path: a text file with a prompt on each line, a captions JSON of COCO or the zip that it is
        published in, or a folder or tar shards of images with captions.
      count: how many of them, drawn without replacement and kept in their order; None: all.
      seed: of the draw. The draw is the same on every machine and with every numpy: it ranks raw
        numbers of PCG64, whose stream numpy guarantees. A smaller count draws a part of a larger.

    Raises:
      InputError: it cannot be read, has no prompts, or fewer than asked for.
    """
    source = _open(str(path))
    if count is not None and count > source.count:
        raise InputError(
            f"{source.file}: {source.count} prompts, fewer than the {count} asked for; ask for "
            "fewer, or give a longer list"
        )
    return _choose(source, count, seed)


def read_at_most(path: str | Path, count: int, seed: int = 0) -> PromptList:
    """The same, but all prompts where there are fewer than `count`."""
    source = _open(str(path))
    return _choose(source, min(count, source.count), seed)


def _choose(source: _Source, count: int | None, seed: int) -> PromptList:
    rows, chosen = list(range(source.count)), source.how
    if count is not None and count < source.count:
        ranks = np.random.PCG64(seed).random_raw(source.count).argsort(kind="stable")
        rows = sorted(ranks[:count].tolist())
        chosen += f"; {count} of these {source.count} by the seed, in the same order"
    texts = tuple(source.read(rows))
    record = {
        "file": source.file,
        "sha256": source.sha256,
        "prompts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "count": len(texts),
        "of": source.count,
        "chosen": chosen,
        "seed": seed,
    }
    return PromptList(texts, record)


def _open(name: str) -> _Source:
    source = _of_kind(name)
    if not source.count:
        raise InputError(f"{source.file}: no prompts in it; expected {KINDS}")
    return source


def _of_kind(name: str) -> _Source:
    path = Path(name)
    is_file = os.path.isfile(name)  # noqa: PTH113 - a long pattern of shards is no path
    if path.suffix == ".tar" or (not is_file and any(SOURCES[k].matches(name) for k in PICTURES)):
        return _of_examples(name)
    try:
        if zipfile.is_zipfile(path):
            return _of_zip(path)
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file; expected {KINDS}") from error
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be read ({why}); expected {KINDS}") from error
    if path.suffix.lower() == ".json":
        return _of_captions(content, path.name)
    texts = [_plain(line) for line in _decoded(content, name).split("\n")]
    return _listed([text for text in texts if text], path.name, content, LINES)


def _of_zip(path: Path) -> _Source:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if _is_captions(name)]
        if len(names) > 1:  # of COCO: those of the training images are no test
            names = [name for name in names if "val" in PurePosixPath(name).name]
        if len(names) != 1:
            raise InputError(
                f"{path}: {len(names) or 'no'} captions_*.json for validation in it, expected one; "
                "give the JSON itself"
            )
        return _of_captions(archive.read(names[0]), f"{path.name}/{names[0]}")


def _is_captions(name: str) -> bool:
    base = PurePosixPath(name).name
    return base.startswith("captions_") and base.endswith(".json")


def _of_captions(content: bytes, file: str) -> _Source:
    """COCO's format: {"annotations": [{"image_id": ..., "id": ..., "caption": ...}, ...], ...}."""
    text = _decoded(content, file)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error}); expected a captions file of COCO") from error
    try:
        captions = sorted(
            (found["image_id"], found["id"], _plain(found["caption"]))
            for found in value["annotations"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{file}: no captions in it; expected COCO\'s {{"annotations": [{{"image_id": ..., '
            '"id": ..., "caption": ...}]}, such as captions_val2014.json'
        ) from error
    first: dict[int, str] = {}
    for image, _, caption in captions:
        if caption:
            first.setdefault(image, caption)
    return _listed(list(first.values()), file, content, LOWEST_ID)


def _of_examples(name: str) -> _Source:
    examples = open_examples(Data(source=name))

    def caption(index: int) -> str:
        return _plain(examples[index].captions[0])

    def read(rows: Sequence[int]) -> list[str]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(caption, rows))

    return _Source(name, examples.identity, len(examples), read, FIRST)


def _listed(texts: list[str], file: str, content: bytes, how: str) -> _Source:
    digest = hashlib.sha256(content).hexdigest()
    return _Source(file, digest, len(texts), lambda rows: [texts[row] for row in rows], how)


def _decoded(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text; expected {KINDS}") from error


def _plain(text: str) -> str:
    return " ".join(text.split())
