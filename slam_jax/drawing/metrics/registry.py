"""The metrics there are, in the order of a report's columns.

Another one is added from outside: `METRICS["mine"] = Mine()`, for example in a config file.
"""

from collections.abc import Sequence

from slam_jax.base.options import OptionError
from slam_jax.config.options import Config
from slam_jax.drawing.metrics.classifier import LabelAccuracy
from slam_jax.drawing.metrics.frechet import FdFeatures, FdPixels, FdToTeacher
from slam_jax.drawing.metrics.metric import Drawn, Metric
from slam_jax.drawing.metrics.rmse import RmseToTeacher

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (FdPixels(), FdFeatures(), LabelAccuracy(), FdToTeacher(), RmseToTeacher())
}


def measure(drawn: Drawn, names: Sequence[str] = ()) -> dict[str, float]:
    """Every metric that can be computed for these pictures.

    Args:
      drawn: the pictures.
      names: of METRICS; none: all.
    """
    chosen = [METRICS[name] for name in names or METRICS]
    if drawn.reference is None:
        chosen = [metric for metric in chosen if not metric.needs_reference]
    return {metric.name: metric.compute(drawn) for metric in chosen if metric.applies(drawn)}


def check_metrics(config: Config) -> None:
    """Compares the metrics that a config names with those there are.

    Raises:
      OptionError: there is no such metric; names the key, below "config".
    """
    for name in config.evaluation.metrics:
        if name not in METRICS:
            expected = f"one of {', '.join(METRICS)}"
            raise OptionError("evaluation.metrics", name, expected)
    steps = config.evaluation.student_steps
    chosen = [METRICS[name] for name in config.evaluation.metrics or METRICS]
    drawn = [m.name for m in chosen if m.lower_is_better and not m.needs_reference]
    names = ["loss", *(f"{name}_{count}" for name in drawn for count in steps)]
    if (best := config.training.best_metric) not in names:
        raise OptionError("training.best_metric", best, f"one of {', '.join(names)}")
