"""Subjects that must compute the same, and are timed only when they do."""

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import timing
from jax.extend.backend import clear_backends

# Of losses, relative: the first, and those after the weights have moved. In half precision, and
# where a GPU rounds factors to tf32, of their mean.
LOSS_TOLERANCES = {"float32": (1e-5, 1e-4), "tf32": 1e-2, "bfloat16": 1e-2, "float16": 1e-2}
# Of pictures, in 1/255: the largest difference in float32, else the mean one, as a pixel can be
# anywhere. What is both ours differs by the order of additions only.
PICTURE_TOLERANCE, OWN_PICTURE_TOLERANCE, MEAN_TOLERANCE = 255e-4, 255e-5, 2.0
COMPILED = "_compiled"  # the end of a subject's name that torch.compile made
Difference = Callable[[str, np.ndarray, np.ndarray, str], float]


class ParityError(Exception):
    """A subject does not compute what the others do; its time would mean nothing."""


class CallError(Exception):
    """A call to be timed failed; `__cause__` says why."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Subject:
    """One of those that are compared.

    Attributes:
      build: makes (what it computes from given numbers, a function to time).
      like: the subject that must compute the same.
      dtype: whose tolerance holds.
    """

    build: Callable[[], tuple[np.ndarray, Callable[[], Any]]]
    like: str
    dtype: str = "float32"


def precision(dtype: str) -> str:
    """The tolerance for a dtype on this device: a GPU multiplies float32 as tf32."""
    return "tf32" if dtype == "float32" and jax.default_backend() == "gpu" else dtype


def loss_difference(name: str, ours: np.ndarray, other: np.ndarray, dtype: str) -> float:
    """The largest relative difference of losses; in half precision that of their mean, as a
    single one is mostly that of its noisiest example.

    Raises:
      ParityError: it is above the tolerance.
    """
    tolerance, unit = LOSS_TOLERANCES[dtype], "relative loss"
    if dtype != "float32":
        return _within(name, np.abs(other.mean() / ours.mean() - 1), tolerance, unit)
    apart = np.abs(other / ours - 1)
    _within(name, apart[0], tolerance[0], f"{unit} of the first step")
    return _within(name, apart.max(), tolerance[1], unit)


def picture_difference(
    name: str,
    ours: np.ndarray,
    other: np.ndarray,
    dtype: str,
    tolerance: float = PICTURE_TOLERANCE,
) -> float:
    """How far pictures in [0, 1] are apart, in 1/255; the tolerance is for float32.

    Raises:
      ParityError: it is above the tolerance.
    """
    apart = np.abs(ours - other) * 255
    if dtype == "float32":
        return _within(name, apart.max(), tolerance, "of 255")
    return _within(name, apart.mean(), MEAN_TOLERANCE, "of 255")


own_picture_difference = partial(picture_difference, tolerance=OWN_PICTURE_TOLERANCE)


def _within(name: str, found: float, tolerance: float, unit: str) -> float:
    if not found <= tolerance:  # also NaN
        raise ParityError(
            f"{name} does not compute what this project does: difference {found:.3g} {unit}, "
            f"allowed are {tolerance:g}; it was not timed"
        )
    return float(found)


def first_line(error: BaseException) -> str:
    """What went wrong, short enough for a table."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]


def agree_in_float32(
    subjects: Mapping[str, Callable[[], np.ndarray]],
    like: Mapping[str, str],
    difference: Difference,
) -> dict[str, dict[str, Any]]:
    """Whether subjects compute the same where rounding hides nothing.

    Args:
      subjects: each makes what it computes in float32; those that others are compared with first.
      like: for each the subject that must compute the same.
      difference: of what two of them computed.

    Returns:
      For each "float32_difference", or "float32_left_out" and why: memory, or an implementation
      for half precision only.

    Raises:
      ParityError: two that should agree do not.
    """
    computed, found = {}, {}
    for name, compute in subjects.items():
        print(f"{name} in float32 ...", file=sys.stderr, flush=True)
        try:
            with all_of_float32():
                computed[name] = compute()
        except Exception as error:
            found[name] = {"float32_left_out": first_line(error)}
        free()
        if name in found:
            continue
        if like[name] not in computed:
            found[name] = {"float32_left_out": f"nor was {like[name]} computed"}
            continue
        apart = difference(f"{name} in float32", computed[like[name]], computed[name], "float32")
        found[name] = {"float32_difference": apart}
    return found


@contextlib.contextmanager
def all_of_float32() -> Iterator[None]:
    """A GPU multiplies float32 as such and not as tf32, with jax and torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    try:
        with jax.default_matmul_precision("highest"):
            yield
    finally:
        if torch is not None:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]


def race(
    subjects: Mapping[str, Subject],
    difference: Difference,
    repeats: int,
    warm_seconds: float,
    turns: bool,
) -> dict[str, dict[str, Any]]:
    """Times of subjects that agree.

    Args:
      subjects: by name; the first is ours, and what others are compared with comes before them.
      difference: of what two of them computed; refuses what is too large.
      repeats: calls of each that are timed.
      warm_seconds: of each before that.
      turns: all are held at once and take turns. Otherwise one after the other, each freed before
        the next is made, where memory does not hold all.

    Returns:
      For each what `timing.measure` returns, "difference", and "memory_gb" on a GPU; or "failed",
      which says why, if it cannot be made or called, or was compiled by torch to something else.

    Raises:
      ParityError: two that should agree do not.
      Exception: what the first of the subjects raises.
    """
    computed, apart, times, calls, failed = {}, {}, {}, {}, {}
    first = next(iter(subjects))
    for name, subject in subjects.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            computed[name], call = subject.build()
            if subject.like in failed:
                raise RuntimeError(f"{subject.like}, which it is compared with, failed")
            apart[name] = difference(name, computed[subject.like], computed[name], subject.dtype)
            if turns:
                calls[name] = partial(_call, name, call)
            else:
                times[name] = timing.measure(call, repeats=repeats, warm_seconds=warm_seconds)
                times[name] |= {"memory_gb": peak_memory_gb()}
        except Exception as error:
            # Where the same without torch.compile agreed, the mistake is the compiler's.
            mistaken = isinstance(error, ParityError) and not name.endswith(COMPILED)
            if name == first or mistaken:
                raise
            failed[name] = _failed(name, error)
        call = None
        if not turns:
            free()
            free_jax()
    while len(times) + len(failed) < len(subjects):
        try:
            times = timing.take_turns(calls, repeats=repeats, warm_seconds=warm_seconds)
        except CallError as error:
            if error.name == first:
                raise error.__cause__ from None
            failed[error.name] = _failed(error.name, error.__cause__)
            del calls[error.name]
    return {
        name: {"like": subject.like}
        | (failed.get(name) or {**times[name], "difference": apart[name]})
        for name, subject in subjects.items()
    }


def _call(name: str, function: Callable[[], Any]) -> None:
    """Calls and waits, so that what fails is known by its name."""
    try:
        timing.wait(function())
    except Exception as error:
        raise CallError(name) from error


def _failed(name: str, error: BaseException) -> dict[str, str]:
    print(f"note: {name} failed: {first_line(error)}", file=sys.stderr)
    return {"failed": first_line(error)}


def free() -> None:
    """Gives back what nobody uses: torch's memory of a GPU, and what it compiled."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and importing it is slow
        torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def free_jax() -> None:
    """Gives back jax's memory of a GPU, which it keeps for itself as long as it has a client."""
    if jax.default_backend() == "gpu":
        jax.clear_caches()
        clear_backends()


def peak_memory_gb() -> dict[str, float]:
    """The most memory of a GPU that each library has had in use; of torch since `free`."""
    found = {}
    if stats := jax.devices()[0].memory_stats():
        found["jax"] = stats.get("peak_bytes_in_use", 0) / 1e9
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["torch"] = torch.cuda.max_memory_allocated() / 1e9
    return found
