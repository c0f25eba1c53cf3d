"""slam-jax pretrain: a small Stable Diffusion from nothing, to be a teacher.

slam-jax pretrain --config emoji_teacher --config.data.source=emoji:data/emoji [--workdir DIR]
[--resume] [--distributed]
"""

from typing import Any

from slam_jax.commands.long_run import long_run
from slam_jax.config.command_line import Command
from slam_jax.recipes.pretrain import pretrain


def work(command: Command, started: str) -> dict[str, Any]:
    return pretrain(command.config, command.workdir, command.resume)


def report(command: Command, facts: dict[str, Any]) -> str:
    return f"\nautoencoder: PSNR {facts['psnr']:.1f} dB\nteacher:     {command.workdir / 'teacher'}"


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    long_run("pretrain", work, report, argv)
