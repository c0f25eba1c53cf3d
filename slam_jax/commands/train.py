"""slam-jax train: teacher, distillation, report, export.

slam-jax train --config digits [--config.method.gamma=one] [--workdir runs/lcm] [--resume]
[--distributed]
"""

import os
import shlex
import sys

from slam_jax.base.errors import BackendError, InputError
from slam_jax.config.command_line import parse
from slam_jax.drawing.report import to_markdown
from slam_jax.parallel import runtime
from slam_jax.parallel.processes import is_main, join, together
from slam_jax.recipes.run import run
from slam_jax.reporting.page import REPORT_FILE
from slam_jax.training.loop import Interrupted


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    argv, speaks = sys.argv[1:] if argv is None else argv, True
    started = shlex.join(["slam-jax", "train", *argv])
    try:
        command = parse(argv)
        runtime.configure(alone=not command.distributed)
        if command.distributed:
            join()
        elif os.environ.get("JAX_NUM_PROCESSES", "1") != "1":
            raise InputError(
                "JAX_NUM_PROCESSES is set, and --distributed is not given; give it, or unset the "
                "variable for a run in one process"
            )
        speaks = is_main()  # asked now: afterwards every process is alone
        with together(agreed=(Interrupted,)):
            rows = run(command.config, command.workdir, command.resume, started)
    except (InputError, BackendError) as error:
        sys.exit(f"error: {error}")
    except (Interrupted, KeyboardInterrupt) as stop:
        resume = [] if "--resume" in argv else ["--resume"]
        again = shlex.join([sys.executable, "-m", "slam_jax.main", *argv, *resume])
        again = "start all processes again with --resume" if command.distributed else again
        what = str(stop) or "interrupted; its checkpoints, if it had come to one, are kept"
        if speaks:
            print(f"\n{what}. To go on:\n  {again}", file=sys.stderr)
        sys.exit(130)
    if speaks:
        samples, export, report = (
            command.workdir / name for name in ("samples", "export", REPORT_FILE)
        )
        print(f"\n{to_markdown(rows)}\npictures: {samples}\nstudent:  {export}\nreport:   {report}")
