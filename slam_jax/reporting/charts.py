"""The curves of a run, as a page can draw them."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from slam_jax.drawing.metrics.registry import METRICS
from slam_jax.reporting.data import Row, RunData, names_of

MOST_POINTS = 400  # of a curve; of more, neighbours are averaged
WIDE = 8  # largest to smallest value
NOT_SHOWN = {"step", "skipped", "rejected_examples"}  # told in words
# Of metrics that every run has.
KNOWN = {
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "samples_per_second": "Samples per second",
}
BINNED = {"loss_t": "Loss by t, as a share of the schedule", "loss_gamma": "Loss by gamma"}


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
      label: in the legend.
      points: (step, value); a value that is not finite is None.
      reference: what others are compared with: dashed.
      color: of curves in other charts with the same number, the same one.
    """

    label: str
    points: Sequence[tuple[float, float | None]]
    reference: bool = False
    color: int = 0


@dataclass(frozen=True)
class Chart:
    """Curves over the training steps.

    Attributes:
      title: what is shown.
      note: what else a reader has to know; "" if nothing.
      curves: one or more.
      log: whether the values have a logarithmic axis.
    """

    title: str
    note: str = ""
    curves: list[Curve] = field(default_factory=list)
    log: bool = False


def charts(run: RunData) -> tuple[list[Chart], list[Chart]]:
    """(metrics of the ladders, curves of the training)."""
    names = [name for name in names_of(run.rows) if name not in NOT_SHOWN]
    measured, binned, rest = {}, {}, []
    for name in names:
        by_steps = re.fullmatch(r"(.+)_(\d+)", name)
        by_bin = re.fullmatch(r"(.*[a-z])(\d+)", name)
        if by_steps and by_steps[1] in METRICS:
            measured.setdefault(by_steps[1], []).append(int(by_steps[2]))
        elif by_bin:
            binned.setdefault(by_bin[1], []).append(name)
        else:
            rest.append(name)
    plain = [_of_training(run, name) for name in _in_order(rest, KNOWN)]
    bins = [_by_bin(run.rows, stem, sorted(binned[stem])) for stem in _in_order(binned, BINNED)]
    ladders = [_of_ladders(run, stem, sorted(counts)) for stem, counts in measured.items()]
    return ladders, [*plain[:1], *bins, *plain[1:]]


def _in_order(names: Iterable[str], known: Collection[str]) -> list[str]:
    """The names, those that are known first and in their order."""
    names = list(names)
    return [*(n for n in known if n in names), *(n for n in names if n not in known)]


def _of_training(run: RunData, name: str) -> Chart:
    """A metric by itself."""
    title = KNOWN.get(name, name.replace("_", " "))
    curve = Curve(title, points(run.rows, name))
    if name != "grad_norm":
        return Chart(title, "", [curve], name != "learning_rate" and _is_wide([curve]))
    norm = run.config.training.optimizer.clip_norm
    clip = Curve(f"clipped above {norm:g}", [(x, norm) for x, _ in curve.points], True, 1)
    return Chart(title, "", [curve, clip], _is_wide([curve, clip]))


def _by_bin(rows: Sequence[Row], stem: str, names: list[str]) -> Chart:
    """A metric that there is for each of several bins of [0, 1]."""
    count = len(names)
    curves = [
        Curve(f"{i / count:.2g} to {(i + 1) / count:.2g}", points(rows, name), color=i)
        for i, name in enumerate(names)
    ]
    return Chart(BINNED.get(stem, stem.replace("_", " ")), "", curves, _is_wide(curves))


def _of_ladders(run: RunData, stem: str, counts: list[int]) -> Chart:
    """A metric of the step ladders: a curve for each number of steps, and the teacher's numbers."""
    metric, teacher, curves = METRICS[stem], run.teacher_metrics or {}, []
    for color, steps in enumerate(counts):
        found = points(run.rows, f"{stem}_{steps}")
        curves.append(Curve(_in_steps("student", steps), found, color=color))
        if np.isfinite(value := teacher.get(f"{stem}_{steps}", np.nan)):
            line = [(x, value) for x, _ in found]
            curves.append(Curve(_in_steps("teacher", steps), line, True, color))
    note = f"{'lower' if metric.lower_is_better else 'higher'} is better"
    if count := run.measured(metric):
        note += f"; of {count:,} picture{'s' * (count > 1)}"
    return Chart(metric.title, note, curves, _is_wide(curves))


def _is_wide(curves: Sequence[Curve]) -> bool:
    """Whether the values range so far that only a logarithmic axis shows all of them."""
    values = [y for curve in curves for _, y in curve.points if y is not None]
    return bool(values) and min(values) > 0 and max(values) > WIDE * min(values)


def _in_steps(model: str, steps: int) -> str:
    return f"{model}, {steps} {'step' if steps == 1 else 'steps'}"


def points(rows: Sequence[Row], name: str) -> list[tuple[float, float | None]]:
    """(step, value) of a metric, in the rows that have it; of many, means of neighbours."""
    having = [row for row in rows if name in row]
    steps, values = ([row[key] for row in having] for key in ("step", name))
    found = np.array([steps, values], np.float64).T
    if len(found) > MOST_POINTS:
        found = np.array([part.mean(axis=0) for part in np.array_split(found, MOST_POINTS)])
    return [(float(x), float(f"{y:.6g}") if np.isfinite(y) else None) for x, y in found]
