"""What the commands that train have in common: config file, processes, and a stop that says how to
go on."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.commands.command import refusals
from slam_jax.commands.interrupts import heard_at_once
from slam_jax.config.command_line import Command, parse
from slam_jax.parallel import runtime
from slam_jax.parallel.processes import is_main, join, together
from slam_jax.training.loop import Interrupted

INTERRUPTED = "interrupted; its checkpoints, if it had come to one, are kept"


def long_run(
    name: str,
    work: Callable[[Command, str], Any],
    report: Callable[[Command, Any], str],
    argv: Sequence[str] | None,
) -> None:
    """Does a command's work; prints its report in the first process.

    Args:
      name: of the command.
      work: called with the command and the line that started it.
      report: of the command and what `work` returned.
      argv: behind the command's name; None: the process's own.

    Raises:
      SystemExit: something was refused, in one line; or Ctrl-C came, and the way on is printed.
    """
    argv, speaks = sys.argv[1:] if argv is None else [*argv], True
    with refusals():
        command = parse(argv, name)
        resume = [] if "--resume" in argv else ["--resume"]
        again = shlex.join([sys.executable, "-m", "slam_jax", name, *argv, *resume])
        again = "start all processes again with --resume" if command.distributed else again
        try:
            runtime.configure(alone=not command.distributed)
            if command.distributed:
                join()
            elif os.environ.get("JAX_NUM_PROCESSES", "1") != "1":
                raise InputError(
                    "JAX_NUM_PROCESSES is set, and --distributed is not given; give it, or unset "
                    "the variable for a run in one process"
                )
            speaks = is_main()  # asked now: afterwards every process is alone
            way_on = f"{INTERRUPTED}. To go on:\n  {again}" if speaks else ""
            with heard_at_once(way_on), together(agreed=(Interrupted,)):
                result = work(command, shlex.join(["slam-jax", name, *argv]))
        except (Interrupted, KeyboardInterrupt) as stop:
            if speaks:
                print(f"\n{str(stop) or INTERRUPTED}. To go on:\n  {again}", file=sys.stderr)
            sys.exit(130)
    if speaks:
        print(report(command, result))
