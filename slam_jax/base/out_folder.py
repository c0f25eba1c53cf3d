"""A folder that is written whole or not at all, in the place of an earlier one of its kind."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slam_jax.base.errors import InputError


@contextmanager
def whole_folder(out: Path, is_ours: Callable[[set[str]], bool], kind: str) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end, and disappears when anything fails.

    An earlier one in its place is kept until then.

    Args:
      out: the folder to make.
      is_ours: whether a folder with these names at its top is one that may be replaced.
      kind: what it is called, such as "export".

    Raises:
      InputError: `out` holds something else, or cannot be written.
    """
    out = out.resolve()  # behind a link, such as one to a larger disk
    if out.exists() and not _may_be_replaced(out, is_ours):
        raise InputError(f"{out}: not empty, and no earlier {kind}; choose another folder")
    # The same names every time: what a killed export left is removed by the next one.
    unfinished, previous = (out.with_name(f".{out.name}.{end}") for end in ("unfinished", "old"))
    try:
        if previous.exists() and not out.exists():  # killed between the two renames below
            previous.rename(out)
        for leftover in (unfinished, previous):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        if out.exists():
            out.rename(previous)
        unfinished.rename(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {' '.join(str(error).split())}") from error
    finally:
        if previous.exists() and not out.exists():
            previous.rename(out)
        for leftover in (unfinished, previous):
            shutil.rmtree(leftover, ignore_errors=True)


def _may_be_replaced(folder: Path, is_ours: Callable[[set[str]], bool]) -> bool:
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or is_ours(names)
