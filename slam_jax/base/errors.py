"""The exceptions that the command line turns into one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from slam_jax.base.options import OptionError


class InputError(ValueError):
    """The user's input is wrong. One line: which file or key, what was expected, what to do."""


class BackendError(RuntimeError):
    """The machine computes wrongly. One line: what, and what to do."""


@contextmanager
def options_of(path: str) -> Iterator[None]:
    """Turns an OptionError into an InputError with the option's full path."""
    try:
        yield
    except OptionError as error:
        raise InputError(f"{path}.{error}") from error


@contextmanager
def prefixed(name: str) -> Iterator[None]:
    """Puts the name of an option or a group before whatever an InputError says."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}{error}") from error
