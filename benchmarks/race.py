"""Subjects that must compute the same, and are timed only when they do."""

import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import timing

# Of losses, relative; of pictures, in 1/255: the largest difference in float32, the mean one in
# half precision, where a pixel can be anywhere.
LOSS_TOLERANCES = {"float32": 1e-3, "bfloat16": 1e-2, "float16": 1e-2}
PICTURE_TOLERANCES = {"float32": 2.0, "bfloat16": 2.0, "float16": 2.0}


class ParityError(Exception):
    """A subject does not compute what the others do; its time would mean nothing."""


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


def loss_difference(name: str, ours: np.ndarray, other: np.ndarray, dtype: str) -> float:
    """The largest relative difference of losses; in half precision that of their mean, as a
    single one is mostly that of its noisiest example.

    Raises:
      ParityError: it is above the tolerance.
    """
    if dtype != "float32":
        ours, other = ours.mean(), other.mean()
    found = np.max(np.abs(other / ours - 1))
    return _within(name, found, LOSS_TOLERANCES[dtype], "relative loss")


def picture_difference(name: str, ours: np.ndarray, other: np.ndarray, dtype: str) -> float:
    """How far pictures in [0, 1] are apart, in 1/255.

    Raises:
      ParityError: it is above the tolerance.
    """
    apart = np.abs(ours - other) * 255
    found = apart.max() if dtype == "float32" else apart.mean()
    return _within(name, found, PICTURE_TOLERANCES[dtype], "of 255")


def _within(name: str, found: float, tolerance: float, unit: str) -> float:
    if not found <= tolerance:  # also NaN
        raise ParityError(
            f"{name} does not compute what this project does: difference {found:.3g} {unit}, "
            f"allowed are {tolerance:g}; nothing was timed"
        )
    return float(found)


def race(
    subjects: Mapping[str, Subject],
    difference: Callable[[str, np.ndarray, np.ndarray, str], float],
    repeats: int,
    warm_seconds: float,
    turns: bool,
) -> dict[str, dict[str, Any]]:
    """Times of subjects that agree.

    Args:
      subjects: by name.
      difference: of what two of them computed; refuses what is too large.
      repeats: calls of each that are timed.
      warm_seconds: of each before that.
      turns: all are held at once and take turns. Otherwise one after the other, each freed before
        the next is made, where memory does not hold all.

    Returns:
      For each what `timing.measure` returns, "difference", and "memory_gb" on a GPU.

    Raises:
      ParityError: two that should agree do not.
    """
    computed, times, calls = {}, {}, {}
    for name, subject in subjects.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        computed[name], call = subject.build()
        if subject.like in computed:
            difference(name, computed[subject.like], computed[name], subject.dtype)
        if turns:
            calls[name] = call
            continue
        times[name] = timing.measure(call, repeats=repeats, warm_seconds=warm_seconds)
        times[name] |= {"memory_gb": peak_memory_gb()}
        del call
        free()
    if turns:
        times = timing.take_turns(calls, repeats=repeats, warm_seconds=warm_seconds)
    return {
        name: {
            **times[name],
            "like": subject.like,
            "difference": difference(name, computed[subject.like], computed[name], subject.dtype),
        }
        for name, subject in subjects.items()
    }


def free() -> None:
    """Gives a GPU's memory back, as far as jax and torch do so."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gb() -> dict[str, float]:
    """The most memory of a GPU that each library has had in use; torch since `free`."""
    found = {}
    if stats := jax.devices()[0].memory_stats():
        found["jax"] = stats.get("peak_bytes_in_use", 0) / 1e9
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["torch"] = torch.cuda.max_memory_allocated() / 1e9
    return found
