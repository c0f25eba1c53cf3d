"""What in the data of a run a reader should know of, in words."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from slam_jax.drawing.metrics.registry import METRICS
from slam_jax.method.slam import Slam
from slam_jax.method.slam_literal import SlamLiteral
from slam_jax.reporting.data import Row, RunData, Strips, names_of

FEW = 8  # rows, with which a course cannot be told from noise yet
SIGMAS = 2.0  # standard errors, up to which a difference is noise


@dataclass(frozen=True)
class Finding:
    """Something to know of.

    Attributes:
      text: what it is, with its numbers.
      advice: what it may mean, and what to do.
    """

    text: str
    advice: str


def findings(run: RunData) -> list[Finding]:
    """All there are, those of broken steps first."""
    training, method = run.config.training, run.config.method
    told = isinstance(method, SlamLiteral) or (isinstance(method, Slam) and method.gamma != "one")
    return [
        *skipped_steps(run.rows),
        *rejected_examples(run.rows, training.batch_size),
        *growing_loss_of_last_t_bin(run.rows),
        *(gamma_without_effect(run.rows) if told else ()),
        *clipped_gradients(run.rows, training.optimizer.clip_norm),
        *worse_metrics(run.rows),
        *(saturated_pictures(run.ladders[-1]) if run.ladders else ()),
    ]


def skipped_steps(rows: Sequence[Row]) -> Iterator[Finding]:
    """Steps that changed nothing."""
    if count := int(rows[-1].get("skipped", 0)) if rows else 0:
        yield Finding(
            f"{_count(count, 'step was', 'steps were')} skipped: loss or gradient was not finite.",
            "slam-jax replay --workdir of this run shows which examples and arrays it was; the "
            "batches are in replay/. A lower training.optimizer.learning_rate is the usual cure.",
        )


def rejected_examples(rows: Sequence[Row], batch_size: int) -> Iterator[Finding]:
    """Examples that were passed over."""
    if count := int(rows[-1].get("rejected_examples", 0)) if rows else 0:
        share = count / (rows[-1]["step"] * batch_size + count)
        yield Finding(
            f"{_count(count, 'example was', 'examples were')} rejected, {share:.2g} of those read.",
            "slam-jax inspect says which and why; the run printed the first of each kind.",
        )


def growing_loss_of_last_t_bin(rows: Sequence[Row]) -> Iterator[Finding]:
    """The loss where there is most noise, in the second quarter of the training (after what only
    the start shows) and in the last."""
    name = max((name for name in names_of(rows) if re.fullmatch(r"loss_t\d", name)), default="")
    values = _column(rows, name)
    if len(values) < FEW:
        return
    _, before, _, after = np.array_split(values, 4)
    error = np.hypot(_error(before), _error(after))
    growth = after.mean() / before.mean() - 1
    if after.mean() - before.mean() > SIGMAS * error and growth > 0.1:
        yield Finding(
            f"The loss of the last t bin grows: from {before.mean():.3g} in the second quarter of "
            f"the training to {after.mean():.3g} in the last (+{growth:.0%}).",
            "There the noise is strongest, and pictures in one step come from there. A lower "
            "learning rate or a slower training.ema may keep the target still.",
        )


def gamma_without_effect(rows: Sequence[Row]) -> Iterator[Finding]:
    """The losses of the first and the last bin of gamma, row by row: the larger gamma is, the
    farther is the point from the end of the sub-path, whose answer is the target. Equal losses say
    that the points are the same, or that the network cannot tell them apart."""
    names = sorted(name for name in names_of(rows) if re.fullmatch(r"loss_gamma\d", name))
    both = [row for row in rows if names and names[0] in row and names[-1] in row]
    if len(names) < 2 or len(both) < FEW:
        return
    low, high = _column(both, names[0]), _column(both, names[-1])
    difference = high - low
    noise = SIGMAS * _error(difference)
    if abs(difference.mean()) < noise and noise < 0.1 * high.mean():
        yield Finding(
            f"Gamma has no effect: the loss is {low.mean():.3g} in its first bin and "
            f"{high.mean():.3g} in its last, equal within noise.",
            "The loss should rise with gamma, which says how far a point is from the end of its "
            "sub-path. Look at method.gamma, method.sigma and method.conditioning.",
        )


def clipped_gradients(rows: Sequence[Row], clip_norm: float) -> Iterator[Finding]:
    """Rows in which the gradient's norm, a mean over steps, is larger than it may be."""
    norms = _column(rows, "grad_norm")
    share = float(np.mean(norms > clip_norm)) if len(norms) else 0.0
    if len(norms) >= FEW and share >= 0.9:
        yield Finding(
            f"The gradient norm is clipped in nearly every step: its mean is above {clip_norm:g} "
            f"in {share:.0%} of the rows (median {np.median(norms):.3g}).",
            "Every step then has the same length before Adam, however sure the gradient is. A "
            "larger training.optimizer.clip_norm clips only what stands out.",
        )


def worse_metrics(rows: Sequence[Row]) -> Iterator[Finding]:
    """Metrics of the ladders whose best value is behind."""
    for name in names_of(rows):
        found = re.fullmatch(r"(.+)_(\d+)", name)
        if not found or found[1] not in METRICS:
            continue
        measured = [row for row in rows if name in row and np.isfinite(row[name])]
        if len(measured) < 3:
            continue
        metric, values = METRICS[found[1]], _column(measured, name)
        sign = 1 if metric.lower_is_better else -1
        best = int(np.argmin(sign * values))
        loss = sign * (values[-1] - values[best])
        if loss > 0.1 * abs(values[best]):
            yield Finding(
                f"{metric.title} in {_count(int(found[2]), 'step', 'steps')} got worse since step "
                f"{int(measured[best]['step']):,}: it was {values[best]:.3g} there and is "
                f"{values[-1]:.3g} now.",
                f"training.keep_best with training.best_metric={name} keeps the best checkpoint, "
                "and slam-jax export --step best exports it.",
            )


def saturated_pictures(ladder: Strips) -> Iterator[Finding]:
    """Student's pictures with many more values at the border of what can be shown than the
    teacher's of the same noise have."""
    teacher = ladder.teacher.at_border
    worst = max(ladder.student, key=lambda strip: strip.at_border)
    if worst.at_border > teacher + 0.05 and worst.at_border > 1.5 * teacher:
        yield Finding(
            f"Pictures saturate: in {_count(worst.steps, 'step', 'steps')} the share of pixels at "
            f"the border is {worst.at_border:.0%}, the teacher's {teacher:.0%}.",
            "Too much guidance burns pictures in: a lower method.w, or a longer training.",
        )


def _count(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    """A metric in the rows that have it."""
    return np.array([row[name] for row in rows if name in row], np.float64)


def _error(values: np.ndarray) -> float:
    """The standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf
