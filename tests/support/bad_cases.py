"""Bad input of every kind, drawn at random: what a command line, a config, a folder or a file may
hold that no run can use. The seed decides all of it."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_folders import NO_RECORDS, Case, Models, run, small_training, student, teacher
from bad_lines import command_lines

from slam_jax.base.options import kinds_of
from slam_jax.config.options import Config
from slam_jax.config.pretraining import Pretraining
from slam_jax.method.registry import METHODS

ROOT = Path(__file__).parents[2]


NO_CONFIGS = (
    b"def get_config(:",
    b"\x8f\x00\xff",
    b"import no_such_module",
    b"get_config = 3",
    b"get_config = lambda: 3",
    b"def get_config():\n    return {'training': 1}",
    b"def get_config(size):\n    pass",
    b"def get_config():\n    return get_config()",
    b"raise SystemExit(0)",
    b"import sys\nsys.exit('bye')",
    b"raise KeyError('a\\nb')",
    b"",
    b"x = 1\n  y = 2",
    b"raise ValueError",
    b"open('/no/such/file')",
    b"def get_config():\n    assert False, 'two\\nlines'",
)


def numbers() -> dict[str, tuple[str, Any]]:
    """Command and metadata of each number of a config, by its key."""
    found = {}
    for command, root in (("train", Config()), ("pretrain", Pretraining())):
        found |= {key: (command, facts) for key, facts in _numbers(root, "config")}
    for method in METHODS.values():
        keys = dict(_numbers(method(), f"config.method.name={method().name} config.method"))
        found |= {key: ("train", facts) for key, facts in keys.items()}
    return found


def _numbers(options: Any, path: str):
    for field in dataclasses.fields(options):
        value, kind = getattr(options, field.name), kinds_of(type(options))[field.name]
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{path}.{field.name}")
        elif kind in (int, float):
            yield f"{path}.{field.name}", {"kind": kind, **field.metadata}


NUMBERS = numbers()


def number(rng: random.Random, folder: Path, models: Models) -> Case:
    """A number of a config that is out of its range."""
    name, (command, facts) = rng.choice([*NUMBERS.items()])
    *method, key = name.split()
    values: list[Any] = ["nan", "inf", "-inf", 10**30, -(10**30), "x", "", "1e400"]
    values += [facts["at_least"] - 1] * 2 if "at_least" in facts else []
    values += [facts["above"]] * 2 if "above" in facts else []
    values += [facts["at_most"] + 1] * 2 if "at_most" in facts else []
    values += [facts["below"]] * 2 if "below" in facts else []
    value = rng.choice(values)
    recipe = {"train": "digits", "pretrain": "emoji_teacher"}[command]
    flags = [f"--{flag}" for flag in (*method, f"{key}={value}")]
    argv = [command, "--config", recipe, *flags, "--workdir", str(folder / "run")]
    return Case(f"{key} = {value}", argv, [key])


def config_file(rng: random.Random, folder: Path, models: Models) -> Case:
    """A config file that cannot be run, or a good one with a line that cannot be."""
    path = folder / "mine.py"
    recipe = (ROOT / "configs/digits.py").read_text().splitlines()
    if rng.random() < 0.6:
        path.write_bytes(rng.choice(NO_CONFIGS))
    else:
        lines = [n for n, line in enumerate(recipe) if line.startswith("    config.")]
        bad = ("1 / 0", "config.no_such = 3", "config.training.stepz = 1", "((", "import nothing_")
        recipe.insert(rng.choice(lines), f"    {rng.choice(bad)}")
        path.write_text("\n".join(recipe))
    command = rng.choice(["train", "plan"])
    workdir = ["--workdir", str(folder / "run")]
    return Case(
        f"a config file {path.read_bytes()[:40]!r}",
        [command, "--config", str(path), *workdir],
        ["mine.py"],
    )


def workdir(rng: random.Random, folder: Path, models: Models) -> Case:
    """A folder that no run can have."""
    (folder / "file").write_text("x")
    (folder / "full").mkdir()
    (folder / "full/other").write_text("x")
    places = {
        f"{folder}/file": "file",
        f"{folder}/file/run": "file",
        f"{folder}/file/a/b": "file",
        f"{folder}/full": "full",
        f"{folder}/{'x' * 300}": "--workdir",
        f"{folder}/{'x' * 200}/{'y' * 300}/z": "--workdir",
        f"{folder}/a\0b": "--workdir",
        "/proc/run": "/proc/run",
        "/sys/kernel/run": "/sys/kernel/run",
        "/dev/null": "/dev/null",
        "/dev/null/run": "/dev/null",
    }
    place, named = rng.choice([*places.items()])
    argv = [*rng.choice([["train", "--config", "digits"], small_training()]), "--workdir", place]
    return Case(f"--workdir {place[:60]!r}", argv, [named])


def source(rng: random.Random, folder: Path, models: Models) -> Case:
    """Data that are none."""
    (folder / "file.tar").write_bytes(rng.randbytes(2000))
    (folder / "empty").mkdir()
    (folder / "file.txt").write_text("x")
    (folder / "pictures").mkdir()
    (folder / "pictures/a.jpg").write_bytes(rng.randbytes(500))
    (folder / "pictures/metadata.jsonl").write_bytes(rng.choice(NO_RECORDS))
    names = [
        *("file.tar", "empty", "file.txt", "pictures", "none", "none.tar", "none/*.tar"),
        *("{000000000..999999999}.tar", "{00..99}{00..99}{00..99}{00..99}.tar", "{.tar"),
        *("{a,b}{c,d}.tar", "x" * 300, "a\0b.tar", "file.tar::file.tar", "empty::", "file.tar/x"),
    ]
    name = rng.choice(names)
    place = f"{folder}/{name}"
    name = rng.choice([place, place, place, f"emoji:{place}", f"teacher:{place}", ""])
    commands = [
        ["inspect", name],
        ["prepare", "--source", name, "--model", str(models.teacher), "--out", f"{folder}/out"],
        ["reference", "--images", name, "--out", f"{folder}/out.npz"],
        ["train", "--config", "sd:tiny", f"--config.teacher.path={models.teacher}"]
        + ["--config.training.batch_size=8", f"--config.data.source={name}"]
        + ["--workdir", f"{folder}/out"],
    ]
    argv = rng.choice(commands)
    named = [str(folder), "file.tar", name[:40] or "source", ascii(name)[1:40], "--images"]
    return Case(f"data {name[:60]!r}", argv, named)


KINDS: dict[str, Callable[[random.Random, Path, Models], Case]] = {
    "number": number,
    "config": config_file,
    "workdir": workdir,
    "teacher": teacher,
    "student": student,
    "run": run,
    "source": source,
    "command": lambda rng, folder, models: Case(*command_lines(rng, folder, models)),
}


def listing(folder: Path) -> dict[str, int]:
    """What is in a folder: size by name, hidden files too."""
    return {
        str(path.relative_to(folder)): path.stat().st_size if path.is_file() else -1
        for path in sorted(folder.rglob("*"))
    }
