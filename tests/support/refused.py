"""A command in this process: how it ends, what it says, how long it takes."""

import io
import re
import signal
import time
import traceback
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import NamedTuple

from slam_jax import __main__ as program
from slam_jax.base.errors import InputError
from slam_jax.commands import sample

LONGEST = 10.0  # seconds of a refusal, of this process: others may keep it waiting
DRAWN = "drawn"  # begins the refusal of what is right after all
# What stderr may have beside the refusal: notes, bars, and lines that say what is going on.
ASIDE = re.compile(r"(note: |\d+ devices? \(|compiling|drawing|.*\|.*it/s|.*%\|)")


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
      code: of the process.
      lines: of stderr that are no notes and no progress.
      trace: the traceback that a user would see; "" if none.
      seconds: that it took.
    """

    code: int
    lines: list[str]
    trace: str
    seconds: float


class Hangs(BaseException):
    """A command takes too long."""


@contextmanager
def _at_most(seconds: float):
    def stop(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _not_drawn(*_):
    """In the place of `draw_all`, as compiling takes long."""
    raise InputError(f"{DRAWN}: all of it could be read")


def ended(argv: list[str], limit: float = 100.0) -> Ended:
    """Runs `slam-jax` with these arguments."""
    err, code, trace, started = io.StringIO(), 0, "", time.process_time()
    draw_all, sample.draw_all = sample.draw_all, _not_drawn
    try:
        with redirect_stderr(err), redirect_stdout(io.StringIO()), _at_most(limit):
            program.main(argv)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            err.write(f"\n{stop.code}\n")
        code = 1 if isinstance(stop.code, str) else int(stop.code or 0)
    except Hangs:
        code, trace = -1, "hangs: " + "".join(traceback.format_exc().splitlines()[-3:])
    except BaseException:
        code, trace = 1, traceback.format_exc()
    finally:
        sample.draw_all = draw_all
    said = [line.split("\r")[-1].strip() for line in err.getvalue().splitlines()]
    lines = [line for line in said if line and not ASIDE.match(line)]
    return Ended(code, lines, trace, time.process_time() - started)


def faults(found: Ended, named: list[str]) -> list[str]:
    """What is wrong with a refusal; empty where it is as it has to be."""
    wrong = []
    if found.trace:
        wrong.append(f"traceback: {found.trace.strip().splitlines()[-1][:300]}")
    elif found.code == 0:
        wrong.append("accepted")
    elif len(found.lines) != 1:
        wrong.append(f"{len(found.lines)} lines: {found.lines[:4]}")
    elif not any(name in found.lines[0] for name in named):
        wrong.append(f"names none of {named}")
    elif len(found.lines[0]) > 1000:
        wrong.append(f"a line of {len(found.lines[0])} letters")
    if found.seconds > LONGEST:
        wrong.append(f"{found.seconds:.1f} s")
    return wrong
