"""slam-jax report: write the page about a run again.

slam-jax report --workdir runs/x

Reads what the run left so far, finished or not, and writes report.html into its folder. A run does
so itself at each step ladder and at its end. It needs no devices: a run that is being trained is
not disturbed.
"""

from slam_jax.base.errors import InputError
from slam_jax.commands.command import parser_of, path, refusals
from slam_jax.reporting.page import REPORT_FILE, write_page


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("report", "Write the page about a run again, finished or not.")
    parser.add_argument("--workdir", type=path, required=True, help="of the run")
    workdir = parser.parse_args(argv).workdir
    with refusals():
        try:
            print(f"report: {write_page(workdir)}")
        except OSError as error:
            raise InputError(
                f"{workdir / REPORT_FILE}: cannot be written ({error.strerror})"
            ) from error
