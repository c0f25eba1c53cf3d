"""Captioned pictures of emoji in several styles: the folder that slam-jax prepare emoji makes.

FOLDER/emoji.json              what was made of what, how it was split, and the licences
FOLDER/train/STYLE.tar         webdataset shards: CODE.png and CODE.txt for each picture
FOLDER/held_out/STYLE.tar      those of concepts that training does not see
"""

from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json
from slam_jax.data.tar_shards import TarShards

FORMAT = 1
RECORD_FILE = "emoji.json"
SPLITS = ("train", "held_out")
MAKE = "make it with slam-jax prepare emoji --packages FOLDER --out FOLDER"


def read_record(folder: Path) -> dict[str, Any]:
    """What the folder says of itself.

    Raises:
      InputError: slam-jax prepare emoji did not make it, or another version of it did.
    """
    if not (folder / RECORD_FILE).is_file():
        raise InputError(f"{folder}: no folder of emoji, {RECORD_FILE} is not in it; {MAKE}")
    record = read_json(folder / RECORD_FILE, MAKE)
    if record.get("format") != FORMAT or not isinstance(record.get("styles"), dict):
        raise InputError(f"{folder / RECORD_FILE}: not of format {FORMAT}; {MAKE}")
    return record


def open_emoji(folder: Path, split: str, cache: Path | None = None) -> TarShards:
    """The pictures of one split with their captions.

    Args:
      folder: as slam-jax prepare emoji made it.
      split: one of SPLITS.
      cache: as `TarShards` takes it.

    Raises:
      InputError: there is no such folder or split, or not all of it is there.
    """
    if split not in SPLITS:
        raise InputError(f"emoji:{folder}: split = {split!r}, expected one of {', '.join(SPLITS)}")
    expected = sum(style[split] for style in read_record(folder)["styles"].values())
    examples = TarShards(str(folder / split), cache=cache)
    if len(examples) != expected:
        raise InputError(
            f"{folder / split}: {len(examples)} pictures, {RECORD_FILE} says {expected}; {MAKE}"
        )
    return examples
