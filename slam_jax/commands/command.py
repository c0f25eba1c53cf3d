"""What all sub-commands have in common."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from slam_jax.base.errors import BackendError, InputError
from slam_jax.parallel import runtime


def parser_of(name: str, description: str, **more: Any) -> argparse.ArgumentParser:
    """A parser whose help shows every default."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    prog = f"slam-jax {name}"
    return argparse.ArgumentParser(prog, None, description, formatter_class=formatter, **more)


def run(work: Callable[[Any], None], parser: argparse.ArgumentParser, argv: Sequence[str] | None):
    """Does a command's work, with JAX set up.

    Args:
      work: called with the arguments.
      parser: of the command line.
      argv: None: the process's own.

    Raises:
      SystemExit: something was refused, in one line; or Ctrl-C came.
    """
    arguments = parser.parse_args(argv)
    runtime.configure()
    try:
        runtime.devices()
        work(arguments)
    except (InputError, BackendError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
