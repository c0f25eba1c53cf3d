"""slam-jax train: teacher, distillation, report, export.

slam-jax train --config digits [--config.method.gamma=one] [--workdir runs/lcm] [--resume]
[--distributed]
"""

from slam_jax.commands.long_run import long_run
from slam_jax.config.command_line import Command
from slam_jax.drawing.report import to_markdown
from slam_jax.recipes.run import run
from slam_jax.reporting.page import REPORT_FILE


def work(command: Command, started: str) -> list[dict]:
    return run(command.config, command.workdir, command.resume, started)


def report(command: Command, rows: list[dict]) -> str:
    samples, export, page = (command.workdir / name for name in ("samples", "export", REPORT_FILE))
    return f"\n{to_markdown(rows)}\npictures: {samples}\nstudent:  {export}\nreport:   {page}"


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    long_run("train", work, report, argv)
