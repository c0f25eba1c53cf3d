"""How long a function takes, for jax and torch alike; subjects that are compared take turns.

Nothing here starts a device: a function's results are waited for, whatever made them.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

SECONDS_TO_WARM = {"cpu": 1.0, "gpu": 60.0, "tpu": 10.0}


def seconds_to_warm(platform: str | None = None) -> float:
    """For how long a device has to be busy before its clocks are where they stay.

    Args:
      platform: "cpu", "gpu" or "tpu"; None: that of jax's default device.
    """
    return SECONDS_TO_WARM.get(platform or jax.default_backend(), 1.0)


def wait(result: Any) -> None:
    """Returns when the arrays in a result are there, torch's on a GPU too."""
    jax.block_until_ready(result)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds(function: Callable, *arguments: Any) -> float:
    """Wall-clock seconds of one call, its results waited for."""
    start = time.perf_counter()
    wait(function(*arguments))
    return time.perf_counter() - start


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest and highest of seconds, and how many they are."""
    return {
        "median_s": statistics.median(values),
        "low_s": min(values),
        "high_s": max(values),
        "repeats": len(values),
    }


def measure(
    function: Callable,
    *arguments: Any,
    warm_up: int = 2,
    repeats: int = 10,
    warm_seconds: float = 0.0,
) -> dict[str, Any]:
    """Seconds that a function takes.

    Args:
      function: may return arrays of jax or torch, in any nesting; they are waited for.
      *arguments: of the function.
      warm_up: calls that do not count; the first of them compiles.
      repeats: calls that do.
      warm_seconds: warm-up calls go on for at least as long; `seconds_to_warm()` for a device.

    Returns:
      "median_s", "low_s", "high_s" and "repeats".
    """
    return take_turns(
        {"it": lambda: function(*arguments)}, warm_up, repeats, warm_seconds=warm_seconds
    )["it"]


def take_turns(
    subjects: Mapping[str, Callable[[], Any]],
    warm_up: int = 2,
    repeats: int = 10,
    warm_seconds: float = 0.0,
) -> dict[str, dict[str, Any]]:
    """Seconds of several functions, a call of each in every round, so that a drift hurts all alike.

    Args:
      subjects: functions without arguments, by name.
      warm_up: calls of each that do not count.
      repeats: calls of each that do.
      warm_seconds: warm-up rounds go on for at least as long, all subjects together.

    Returns:
      For each name what `measure` returns.
    """
    for function in subjects.values():  # each on its own: one may compile for minutes
        for _ in range(warm_up):
            wait(function())
    began = time.perf_counter()
    while time.perf_counter() - began < warm_seconds:
        for function in subjects.values():
            wait(function())
    found: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    for turn in range(repeats):
        for name in names if turn % 2 == 0 else reversed(names):  # nobody is always the first
            found[name].append(seconds(subjects[name]))
    return {name: summary(values) for name, values in found.items()}
