"""Starts the commands and the Python of the documentation."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from doc_pages import ROOT

# Lists are arguments of slam-jax, texts are Python.
ONE_AFTER_ANOTHER = """
import json, sys
from slam_jax.__main__ import main
for item in json.loads(sys.argv[1]):
    print(">", *([item] if isinstance(item, str) else item), file=sys.stderr)
    if isinstance(item, str):
        exec(compile(item, "<documentation>", "exec"), {"__name__": "__main__"})
        continue
    try:
        main(item)
    except SystemExit as end:  # with 0, the next command's turn comes
        if end.code:
            raise
"""


def start(arguments: Sequence[object], folder: Path) -> str:
    """Runs a process as a user starts it, with one device; returns what it prints."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache/jax"),
    }
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    done = subprocess.run(
        [*map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def one_after_another(items: Sequence[list[str] | str], folder: Path) -> str:
    """Runs commands and Python in one process: importing JAX takes longer than most of them.

    Args:
      items: arguments of slam-jax, or a program's text.
      folder: where.
    """
    return start([sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(items)], folder)


def run(lines: Sequence[str], folder: Path, small: Sequence[str]) -> None:
    """Runs command lines in their order; training with the arguments that make it small.

    A program that is not slam-jax, and a plan, which makes up devices, have a process each.
    """

    def alone(line: str) -> bool:
        return not line.startswith("slam-jax ") or line.startswith("slam-jax plan ")

    for apart, group in groupby(lines, alone):
        words = [shlex.split(line) for line in group]
        commands = [[*rest, *small] if rest[0] == "train" else rest for _, *rest in words]
        if not apart:
            one_after_another(commands, folder)
            continue
        for (program, *_), arguments in zip(words, commands, strict=True):
            assert program in ("slam-jax", "python"), program
            module = ["-m", "slam_jax"] if program == "slam-jax" else []
            start([sys.executable, *module, *arguments], folder)
