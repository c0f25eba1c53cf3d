"""Latents that were encoded once: a folder that `slam-jax prepare` makes; or that a teacher drew
to be distilled on (recipes.own_pictures).

    plan.json                decides the contents; written first
    shard-00000.arrayrecord  one record for each example: its fields' bytes, one after the other
    shard-00000.json         written after its shard: count, size, digest, what was passed over
    empty.bin                the empty prompt's fields
    info.json                all of this in one; written when every shard is there

Fields, where V is 2 with mirrored twins and else 1, and K is the number of captions kept:

    moments                [V, h, w, 2 C]  mean and log variance that the VAE gives
    time_ids               [V, 6]          not of SD 3
    tokens                 [K, E, L]       repeated from the first one on where there are fewer;
                                           of SD 3 [K, L], those for all text encoders in a row
    caption_count          []              how many captions there are before they repeat
    encoder_hidden_states  [K, L, D]       where embeddings were asked for
    text_embeds            [K, P]          likewise, of SDXL and SD 3
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json
from slam_jax.data.batches import Batch
from slam_jax.data.rejects import Rejected, Rejects, first_usable

PLAN_FILE, INFO_FILE, EMPTY_FILE = "plan.json", "info.json", "empty.bin"
FORMAT = 1
OF_A_VIEW = ("moments", "time_ids")
OF_A_CAPTION = ("tokens", "encoder_hidden_states", "text_embeds")
EMBEDDED = "encoder_hidden_states"  # is there where text embeddings are stored
ENDS = 4096  # bytes at both ends of a shard that its digest is made of
OPEN_SHARDS = 256
OPENERS = 16  # threads that look at the shards
# For random access; the large buffers that are usual are for reading all in order.
READER = dict(options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=32768)
GO_ON = (
    "run the command that made the folder (slam-jax prepare, or slam-jax train with --resume) "
    "again, which makes what is missing"
)


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.arrayrecord"


def row_dtype(fields: Mapping[str, Mapping[str, Any]]) -> np.dtype:
    """A record as numpy sees it.

    Args:
      fields: name -> {"dtype", "shape"}, in their order in the record.
    """
    return np.dtype([(name, _dtype(f["dtype"]), tuple(f["shape"])) for name, f in fields.items()])


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def empty_dtype(row: np.dtype) -> np.dtype:
    """The same for one caption alone, as the empty prompt's file has it."""
    fields = ((name, row[name]) for name in OF_A_CAPTION if name in (row.names or ()))
    return np.dtype([(name, field.base, field.shape[1:]) for name, field in fields])


def state_of(file: Path) -> tuple[int, str]:
    """Size and a digest of both ends: what tells a shard from another one in an instant.

    Raises:
      OSError: it cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as content:
        head = content.read(ENDS)
        content.seek(max(size - ENDS, 0))
        return size, hashlib.sha256(head + content.read(ENDS)).hexdigest()


def read_info(folder: Path) -> dict[str, Any]:
    """What a finished folder holds: the contents of info.json.

    Raises:
      InputError: it is not finished, or damaged, or another kind of folder.
    """
    path = folder / INFO_FILE
    if not path.exists() and (folder / PLAN_FILE).exists():
        done, plan = len(list(folder.glob("shard-*.json"))), read_json(folder / PLAN_FILE, GO_ON)
        raise InputError(
            f"{folder}: not finished, {done} of {-(-plan['examples'] // plan['shard_size'])} "
            "shards are done; run the command that began it again (slam-jax prepare without --part "
            "or with every part, slam-jax train with --resume)"
        )
    if not path.exists():
        raise InputError(f"{path}: no such file; slam-jax prepare makes such a folder")
    info = read_json(path, f"remove it, and {GO_ON}")
    if (found := info.get("format")) != FORMAT:
        raise InputError(f"{path}: format {found!r}, expected {FORMAT}; prepare the data anew")
    return info


def check_fits(
    folder: Path,
    info: Mapping[str, Any],
    teacher: str,
    fingerprints: Mapping[str, str],
    resolution: int,
) -> None:
    """What is stored is what the training would compute.

    Args:
      folder, info: of the latents.
      teacher: its name, for the message.
      fingerprints: of the teacher's parts.
      resolution: of the training, in pixels.

    Raises:
      InputError: another model's VAE or tokenizer (or text encoder, where embeddings are stored)
        made it, or its pictures have another size.
    """
    if info["resolution"] != resolution:
        raise InputError(
            f"{folder}: its pictures have {info['resolution']} pixels, but resolution = "
            f"{resolution} is asked for; set it to {info['resolution']}, or prepare the data anew"
        )
    model, same = info["model"], "train with that model, or prepare the data with this one"
    kinds = ("tokenizer", "text_encoder") if EMBEDDED in info["fields"] else ("tokenizer",)
    for part, fingerprint in model["fingerprints"].items():
        if fingerprints.get(part) != fingerprint:
            raise InputError(
                f"{folder}: made with the {part} of {model['path']}, which is not the {part} of "
                f"{teacher}; {same}"
            )
    for part in fingerprints:
        if part.startswith(kinds) and part not in model["fingerprints"]:
            made = f"made with {model['path']}, which has no {part}"
            raise InputError(f"{folder}: {made}, as {teacher} has; {same}")


class Prepared:
    """A source of batches {"moments": [B, h, w, 2 C], "tokens": int32 [B, ...], "time_ids":
    float32 [B, 6]}, with "encoder_hidden_states" and "text_embeds" where they are stored.

    Args:
      folder: the finished one.
      flip: take the mirrored twin of half of the examples.
      captions: which of several is taken, "random" or "first".
      empty_prompts: share of the examples that lose their caption.

    Raises:
      InputError: the folder is not finished, or damaged, or has no twins to flip to.
    """

    def __init__(
        self, folder: Path, flip: bool = False, captions: str = "random", empty_prompts: float = 0.0
    ):
        self.info = info = read_info(folder)
        self.name, self._folder = str(folder), folder
        self._flip, self._captions, self._empty_prompts = flip, captions, empty_prompts
        if flip and not info["flip"]:
            raise InputError(
                f"{folder}: has no mirrored pictures to flip to; set flip to False, or prepare the "
                "data with --flip"
            )
        self._dtype = row_dtype(info["fields"])
        self._check_shards()
        self._empty = self._read_empty()
        self._ends = np.cumsum([shard["count"] for shard in info["shards"]])
        what = json.dumps([info["fields"], info["shards"], info["empty"]]).encode()
        self.identity = hashlib.sha256(what).hexdigest()

    @property
    def has_embeddings(self) -> bool:
        """Whether what the text encoders make of the captions is stored."""
        return EMBEDDED in self.info["fields"]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: np.ndarray, seeds: np.ndarray) -> tuple[Batch, Rejects]:
        rejects, examples = Rejects(), []
        for index, seed in zip(indices.tolist(), seeds.tolist(), strict=True):
            example = first_usable(self._draw, index, seed, len(self), rejects, self.name)
            examples.append(example)
        batch = {name: np.stack([one[name] for one in examples]) for name in examples[0]}
        return batch, rejects

    def _draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        # The same draws as those of pictures that are encoded in training; the first of them
        # places the crop there.
        _, mirrored, choice, emptied = rng.random(4)
        row = self._row(index)
        twin = int(self._flip and mirrored < 0.5)
        which = int(choice * row["caption_count"]) if self._captions == "random" else 0
        is_empty = emptied < self._empty_prompts
        texts = {
            name: self._empty[name] if is_empty else row[name][which]
            for name in self._empty.dtype.names or ()
        }
        views = (name for name in OF_A_VIEW if name in self.info["fields"])
        return {name: row[name][twin] for name in views} | texts

    def _row(self, index: int) -> np.void:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[shard]) + self.info["shards"][shard]["count"]
        reader = _reader(str(self._folder / shard_name(shard)))
        try:
            return np.frombuffer(reader.read([row])[0], self._dtype)[0]
        # RuntimeError: a checksum that is wrong; ValueError: another size.
        except (RuntimeError, ValueError, IndexError) as error:
            raise Rejected("damaged record", f"{shard_name(shard)}/{row}") from error

    def _check_shards(self) -> None:
        """Every shard is there, and the one that was made."""

        def check(shard):
            path, record = self._folder / shard_name(shard), self.info["shards"][shard]
            try:
                if state_of(path) != (record["size"], record["digest"]):
                    raise InputError(f"{path}: not the file that was made; {GO_ON}")
            except OSError as error:
                why = error.strerror
                raise InputError(f"{path}: cannot be read ({why}); {GO_ON}") from error

        with ThreadPoolExecutor(OPENERS) as pool:
            for _ in pool.map(check, range(len(self.info["shards"]))):
                pass

    def _read_empty(self) -> np.void:
        path = self._folder / EMPTY_FILE
        try:
            return np.fromfile(path, empty_dtype(self._dtype))[0]
        except (OSError, IndexError) as error:
            raise InputError(f"{path}: cannot be read ({error}); {GO_ON}") from error


@lru_cache(OPEN_SHARDS)
def _reader(path: str) -> ArrayRecordReader:
    reader = ArrayRecordReader(path, **READER)
    if not reader.ok():
        raise InputError(f"{path}: cannot be read any more; {GO_ON}")
    return reader
