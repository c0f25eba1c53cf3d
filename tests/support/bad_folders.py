"""Models and workdirs that were good, and a file of which is damaged at random."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import digits_runs


class Case(NamedTuple):
    """A bad input.

    Attributes:
      what: in words.
      argv: of `slam-jax`.
      named: what the refusal has to name: one of these.
      harmless: whether the input may be good enough after all; then what follows is refused.
    """

    what: str
    argv: list[str]
    named: list[str]
    harmless: bool = False


class Models(NamedTuple):
    """Good folders, which are copied before they are damaged.

    Attributes:
      teacher: a diffusers folder of SD 1.5.
      student: an export of the digits.
      run: the workdir of a finished run of the digits.
    """

    teacher: Path
    student: Path
    run: Path


# Of a whole file: what is no record.
NO_RECORDS = (
    b"",
    b"\x8f\x00\xff",
    b"[1, 2]",
    b"null",
    b"3",
    b'"text"',
    b"{",
    b'{"a": 1,}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"PK\3\4" * 100,
    b"<html>not found</html>",
)
# In the place of any value in a record.
VALUES: tuple[Any, ...] = (
    *(None, True, "", "x", "\udc80", "a\0b", [], {}, [[]], {"a": 1}, ["x", None]),
    *(-1, 0, 5, 10**7, 10**30, 0.5, -1e308, float("nan"), float("inf"), [0], [-3, 10**9]),
)


def _damage(rng: random.Random, path: Path) -> tuple[str, bool]:
    """Breaks a JSON file: as a whole, or one value in it. Returns what was done, and whether it may
    be harmless."""
    if rng.random() < 0.3:
        content = rng.choice(NO_RECORDS)
        path.write_bytes(content)
        return f"{path.name} is {content[:20]!r}", False
    if rng.random() < 0.1:
        path.unlink()
        if rng.random() < 0.5:
            path.mkdir()
        may_lack = path.name == "special_tokens_map.json"
        return f"{path.name} is gone, or a folder", may_lack
    record = json.loads(path.read_text())
    places = [*_places(record)]
    inside, key = rng.choice(places)
    if rng.random() < 0.15 and isinstance(inside, dict):
        del inside[key]
        what = f"{path.name} lacks {key}"
    elif rng.random() < 0.1 and isinstance(inside, dict):
        inside["\udc80" if rng.random() < 0.3 else "no_such_key"] = rng.choice(VALUES)
        what = f"{path.name} has a key more"
    else:
        inside[key] = rng.choice(VALUES)
        what = f"{path.name}: {key} is {inside[key]!r}"
    path.write_text(json.dumps(record))
    return what, True


def _places(record: Any):
    """(container, key) of each value in a record, lists' first items only."""
    items = record.items() if isinstance(record, dict) else [*enumerate(record)][:2]
    for key, value in items:
        yield record, key
        if isinstance(value, dict | list):
            yield from _places(value)


def teacher(rng: random.Random, folder: Path, models: Models) -> Case:
    """A diffusers folder with a damaged record."""
    model = shutil.copytree(models.teacher, folder / "model")
    files = sorted(path for path in model.rglob("*.json") if path.name != "vocab.json")
    path = rng.choice(files)
    what, harmless = _damage(rng, path)
    argv = ["sample", "--model", str(model), "--prompt", "x", "--steps", "1"]
    return Case(f"{path.parent.name}/{what}", argv, [str(model)], harmless)


def student(rng: random.Random, folder: Path, models: Models) -> Case:
    """An export of the digits with a damaged record, or with damaged weights."""
    model = shutil.copytree(models.student, folder / "model")
    harmless = False
    if rng.random() < 0.2:
        what = _cut(rng, model / "flax_params.safetensors")
    else:
        what, harmless = _damage(rng, model / "config.json")
    argv = ["sample", "--model", str(model), "--labels", "3"]
    return Case(what, argv, [str(model)], harmless)


def _cut(rng: random.Random, path: Path) -> str:
    content = path.read_bytes()
    ways: dict[str, Callable[[], bytes]] = {
        "cut": lambda: content[: rng.randrange(len(content))],
        "longer": lambda: content + b"\0" * 9,
        "another head": lambda: rng.randbytes(8) + content[8:],
        "noise": lambda: rng.randbytes(1000),
    }
    way = rng.choice([*ways])
    path.write_bytes(ways[way]())
    return f"{path.name} is {way}"


READERS = ("export", "report", "sample", "replay", "train")


def run(rng: random.Random, folder: Path, models: Models) -> Case:
    """A workdir with a damaged record, which some command reads."""
    copy = shutil.copytree(models.run, folder / "run")
    reader = rng.choice(READERS)
    record = rng.choice(
        {
            "export": ["config.json", "teacher/config.json"],
            "report": ["metrics.jsonl"],
            "sample": ["export/config.json"],
            "replay": ["config.json", "teacher/config.json"],
            "train": ["config.json", "metrics.jsonl", "teacher/config.json"],
        }[reader]
    )
    path, harmless = copy / record, False
    if record == "metrics.jsonl":
        content = rng.choice(NO_RECORDS[1:]) + b"\n"
        if rng.random() < 0.2:
            path.unlink()
            path.mkdir()
            content = b""
        else:
            path.write_bytes(content + path.read_bytes())
        what = f"metrics.jsonl begins with {content[:20]!r}"
    else:
        what, harmless = _damage(rng, path)
        if reader == "train":  # which would go on
            rows = (copy / "metrics.jsonl").read_bytes()
            (copy / "metrics.jsonl").write_bytes(b"[]\n" + rows)
    argv = {
        "export": ["export", "--workdir", str(copy), "--step", "77"],
        "report": ["report", "--workdir", str(copy)],
        "sample": ["sample", "--model", str(copy), "--labels", "3"],
        "replay": ["replay", "--workdir", str(copy)],
        "train": [*small_training(), "--workdir", str(copy), "--resume"],
    }[reader]
    return Case(f"{reader}: {what}", argv, [str(copy)], harmless)


def small_training() -> list[str]:
    """The command line of the runs of `digits_runs`."""
    return ["train", *digits_runs.SMALL]
