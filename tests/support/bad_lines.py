"""Bad command lines of every sub-command, made from the parsers themselves."""

import argparse
import random
from importlib import import_module
from pathlib import Path
from typing import Any

from slam_jax.__main__ import COMMANDS
from slam_jax.commands import command, prepare_emoji

CONFIGS = ("train", "pretrain")  # whose options are of a config


class _Found(Exception):
    """Carries a parser."""


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a sub-command."""

    def stop(self: Any, args: Any = None, namespace: Any = None) -> Any:
        raise _Found(self)

    known = command.Parser.parse_known_args
    command.Parser.parse_known_args = stop
    try:
        main = prepare_emoji.main if name == "prepare emoji" else _main(name)
        main([])
    except _Found as found:
        return found.args[0]
    finally:
        command.Parser.parse_known_args = known
    raise AssertionError(f"{name} has no parser")


def _main(name: str) -> Any:
    return import_module(f"slam_jax.commands.{name}").main


def usual(name: str, folder: Path, models: Any) -> list[str]:
    """A command line that is right, but for what is not there: so it is refused in the end."""
    out = str(folder / "out")
    lines = {
        "sample": ["--model", str(models.student), "--labels", "eleven"],
        "evaluate": ["--model", str(folder / "none"), "--out", out],
        "reference": ["--images", str(folder / "none"), "--out", f"{out}.npz"],
        "export": ["--workdir", str(folder / "none"), "--out", out],
        "check": [str(folder / "none")],
        "prepare": ["--source", str(folder), "--model", str(folder / "none"), "--out", out],
        "prepare emoji": ["--packages", str(folder / "none"), "--out", out],
        "inspect": [str(folder / "none")],
        "playground": ["--model", str(folder / "none")],
        "plan": ["--no-compile", "--config", "digits"],
        "replay": ["--workdir", str(folder / "none")],
        "report": ["--workdir", str(folder / "none")],
    }
    return lines[name]


def _bad(rng: random.Random, action: argparse.Action) -> list[str]:
    """Values that an option cannot have."""
    if action.choices:
        return ["nonsense", ""]
    if action.type is int:
        return ["x", "1.5", "", str(10**12), str(-(10**12)), "-8", "nan"]
    if action.type is float:
        return ["x", "nan", "inf", "-inf", ""]
    values = ["a\0b", "\udc80" if action.type is None else "a\0"]
    if action.type is command.path:
        values += ["", "x" * 300, "x/" + "y" * 300]
    return values


def command_lines(
    rng: random.Random, folder: Path, models: Any
) -> tuple[str, list[str], list[str]]:
    """(what, argv, names of which one has to be in the refusal)."""
    names = [name for name in COMMANDS if name not in CONFIGS] + ["prepare emoji"]
    name = rng.choice(names)
    line = usual(name, folder, models)
    words = name.split()
    if rng.random() < 0.15:
        return f"{name}: no such option", [*words, *line, "--no-such=3"], ["no-such"]
    if rng.random() < 0.1:
        cut = [*words, *line[:-1]]
        return f"{name}: cut", cut, ["--", "source", "folder", "DATA", "expected"]
    actions = [
        action
        for action in parser_of(name)._actions
        if action.nargs != 0 and action.option_strings and action.dest != "help"
    ]
    action = rng.choice(actions)
    value, flag = rng.choice(_bad(rng, action)), action.option_strings[-1]
    if (name, flag, value) == ("replay", "--step", "-8"):  # which only the run can tell
        return f"{name} {flag}={value}", [*words, *line, f"{flag}={value}"], [str(folder)]
    return f"{name} {flag}={value[:50]!r}", [*words, *line, f"{flag}={value}"], [flag]
