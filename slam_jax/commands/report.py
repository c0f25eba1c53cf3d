"""slam-jax report: write the page about a run again.

slam-jax report --workdir runs/x

Reads what the run left so far, finished or not, and writes report.html into its folder. A run does
so itself at each step ladder and at its end. It needs no devices: a run that is being trained is
not disturbed.
"""

import sys
from pathlib import Path

from slam_jax.base.errors import InputError
from slam_jax.commands.command import parser_of, path, refusals
from slam_jax.reporting.page import REPORT_FILE, write_page
from slam_jax.training.metric_log import read_rows


def missing(workdir: Path) -> str:
    """Why there are no curves and pictures in the page of a run yet; "": there are some."""
    if read_rows(workdir):
        return ""
    if rows := read_rows(workdir / "teacher"):
        begun = f"its teacher is trained first and was at step {rows[-1]['step']:,}"
    else:
        begun = "its first metrics are still to come"
    return f"the run has nothing of a student yet, so that the page shows options alone: {begun}"


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("report", "Write the page about a run again, finished or not.")
    parser.add_argument("--workdir", type=path, required=True, help="of the run")
    workdir = parser.parse_args(argv).workdir
    with refusals():
        try:
            print(f"report: {write_page(workdir)}")
            if why := missing(workdir):
                print(f"note: {why}; write it again later", file=sys.stderr)
        except OSError as error:
            raise InputError(
                f"{workdir / REPORT_FILE}: cannot be written ({error.strerror})"
            ) from error
