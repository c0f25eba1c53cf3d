"""slam-jax replay: look again at a step that was passed over, as it was not finite.

slam-jax replay --workdir runs/x [--step 7]

Prints a line for each example of the batch that was kept: its place in the batch, its loss, the
norm of its gradient, and what was drawn for it; the first line says whether it was with these
weights that the step failed. Writes nothing. Exit code 0: it ran, whatever it found.
"""

from slam_jax.commands.command import parser_of, path, run
from slam_jax.recipes import replay


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    what = "Look again at a step of a distillation whose loss or gradient was not finite."
    parser = parser_of("replay", what)
    parser.add_argument("--workdir", type=path, required=True, help="of the run")
    parser.add_argument("--step", type=int, help="which; None: the last one that was kept")
    run(lambda arguments: replay.run(arguments.workdir, arguments.step), parser, argv)
