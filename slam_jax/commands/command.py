"""What the sub-commands have in common."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from slam_jax.base.errors import BackendError, InputError, prefixed
from slam_jax.base.files import check_writable
from slam_jax.base.values import MOST, expected_of
from slam_jax.commands.interrupts import heard_at_once
from slam_jax.config.options import DTYPES, SEEDS
from slam_jax.parallel import runtime


class Parser(argparse.ArgumentParser):
    """A parser that refuses what no option can be, in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the process as argparse does, but without the usage.

        Raises:
          SystemExit: always.
        """
        said = one_line(message.removeprefix("argument "))
        self.exit(2, f"error: {said}; {self.prog} --help says what there is\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it.

        Raises:
          SystemExit: a number is not finite or absurd, or a text is no text.
        """
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(found, action.dest, None)
            if expected := expected_of(value):
                name = action.option_strings[-1] if action.option_strings else action.dest
                shown = ascii(str(value)[:80]) if isinstance(value, str | Path) else value
                sys.exit(f"error: {name} {shown}: expected {expected}")
        return found, rest


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows every default but those that say nothing: of what is required, and of flags."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required or action.default is False or action.default in ("", []):
            return action.help
        return super()._get_help_string(action)


def parser_of(name: str, description: str, **more: Any) -> Parser:
    """A parser whose help shows the defaults."""
    return Parser(f"slam-jax {name}", None, description, formatter_class=Help, **more)


def place(text: str) -> str:
    """Where something is, which may be a URL or a pattern; of argparse."""
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file or folder")
    return text


def path(text: str) -> Path:
    """A file's or folder's name; of argparse."""
    return Path(place(text))


def add_version_options(parser: argparse.ArgumentParser) -> None:
    """Flags that say which files of a model are meant."""
    parser.add_argument("--revision", default="", help="commit, tag or branch of a repository")
    parser.add_argument("--variant", default="", help='such as "fp16", of the weight files')


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """Flags that say how large pictures are drawn, and in which dtype."""
    parser.add_argument("--width", type=int, help="in pixels; None: what it was trained on")
    parser.add_argument("--height", type=int, help="in pixels; None: what it was trained on")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of what draws")


def add_lora_options(parser: Any) -> None:
    """Flags that say which LoRAs are merged into a model's weights, and how it draws with them."""
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="LORA[:WEIGHT]",
        help="file, folder, hub repository or owner/name/FILE, and how much of it; may be repeated",
    )
    parser.add_argument(
        "--allow-unused", action="store_true", help="pass over a LoRA's keys that are of no layer"
    )
    parser.add_argument(
        "--method",
        default="",
        help="by which a model draws with a LoRA for few steps that has no record, such as lcm",
    )


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
    with refusals():
        runtime.devices()
        work(arguments)


@contextmanager
def refusals() -> Iterator[None]:
    """What is refused inside, or by the file system, ends the process with one line; Ctrl-C ends it
    without any."""
    try:
        with heard_at_once():
            yield
    except (InputError, BackendError) as error:
        sys.exit(f"error: {one_line(error)}")
    except OSError as error:
        sys.exit(f"error: {one_line(said_of(error))}")
    except KeyboardInterrupt:
        sys.exit(130)


def one_line(said: object) -> str:
    """What is said, without line breaks, which values of the user's may have."""
    return r"\n".join(str(said).splitlines())


def said_of(error: OSError) -> str:
    """A file that cannot be read or written, and why.

    Raises:
      OSError: it is of no file.
    """
    if error.filename is None:
        raise error
    return f"{error.filename}: {error.strerror or error}"


def check_counts(arguments: argparse.Namespace, *names: str, most: int = MOST) -> None:
    """Refuses options that are less than 1, or more than `most`.

    Raises:
      InputError: names the option.
    """
    for name in names:
        option = f"--{name.replace('_', '-')} {(value := getattr(arguments, name))}"
        if value < 1:
            raise InputError(f"{option}: expected 1 or more")
        if value > most:
            raise InputError(f"{option}: expected at most {most:,}")


def check_seed(seed: int, option: str = "--seed") -> None:
    """Refuses a seed that is out of range.

    Raises:
      InputError: it is.
    """
    if not 0 <= seed < SEEDS:
        raise InputError(f"{option} {seed}: expected 0 to {SEEDS - 1}")


def check_size(size: int) -> None:
    """Refuses a --size below 0.

    Raises:
      InputError: it is.
    """
    if size < 0:
        raise InputError(f"--size {size}: expected 1 or more, or 0 for pictures as they are")


def check_png(out: Path | None) -> None:
    """Refuses an --out that does not end in .png, or that cannot be written.

    Raises:
      InputError: it is such.
    """
    if out is not None and out.suffix != ".png":
        raise InputError(f"--out {out}: expected a file that ends in .png")
    check_out(out)


def check_out(out: Path | None) -> None:
    """Refuses an --out that cannot be written, before anything is computed for it.

    Raises:
      InputError: it cannot.
    """
    if out is not None:
        with prefixed("--out "):
            check_writable(out)
