"""The metrics there are, in the order of a report's columns.

Another one is added from outside: `METRICS["mine"] = Mine()`, for example in a config file.
"""

from collections.abc import Sequence

from slam_jax.base.options import OptionError
from slam_jax.config.options import Config
from slam_jax.drawing.metrics.classifier import LabelAccuracy
from slam_jax.drawing.metrics.clip_score import ClipScore, Diversity
from slam_jax.drawing.metrics.cmmd import Cmmd
from slam_jax.drawing.metrics.frechet import FdFeatures, FdOfNetwork, FdPixels, FdToTeacher
from slam_jax.drawing.metrics.metric import Drawn, Metric
from slam_jax.drawing.metrics.precision_recall import Precision, Recall
from slam_jax.drawing.metrics.retrieval import Retrieval
from slam_jax.drawing.metrics.rmse import RmseToTeacher

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        FdPixels(),
        FdFeatures(),
        LabelAccuracy(),
        FdToTeacher(),
        RmseToTeacher(),
        FdOfNetwork("fid", "FID", "inception", "reference"),
        FdOfNetwork("fid_tf1", "FID, TF1 resizing", "inception_tf1", "reference"),
        FdOfNetwork("fid_to_teacher", "FID to teacher", "inception", "teacher"),
        FdOfNetwork("patch_fid", "patch FID", "inception_patch", "reference"),
        FdOfNetwork("fd_clip", "FD CLIP", "clip_l14", "reference"),
        FdOfNetwork("fd_dinov2", "FD DINOv2", "dinov2", "reference"),
        FdOfNetwork("fd_efficientnet", "FD EfficientNet-Lite0", "efficientnet_lite0", "reference"),
        FdOfNetwork(
            "fd_efficientnet_to_teacher",
            "FD EfficientNet-Lite0 to teacher",
            "efficientnet_lite0",
            "teacher",
        ),
        Cmmd(),
        ClipScore(),
        Retrieval(),
        Precision(),
        Recall(),
        Diversity(),
    )
}


def choose(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names; none: all that read no network's features."""
    return [METRICS[name] for name in names] or [m for m in METRICS.values() if not m.networks]


def networks_of(metrics: Sequence[Metric]) -> list[str]:
    """Names of all networks that they read."""
    return list(dict.fromkeys(name for metric in metrics for name in metric.networks))


def measure(drawn: Drawn, names: Sequence[str] = ()) -> dict[str, float]:
    """Every metric that can be computed for these pictures.

    Args:
      drawn: the pictures.
      names: of METRICS; none: all that read no network's features.
    """
    return {m.name: m.compute(drawn) for m in choose(names) if is_possible(m, drawn)}


def is_possible(metric: Metric, drawn: Drawn) -> bool:
    """Whether pictures have what a metric reads, and it applies to them."""
    asked = {"model": True, "prompts": metric.reads_prompts, metric.compares_with: True}
    whose = [name for name, is_read in asked.items() if name and is_read]
    there = all((w, network) in drawn.features for network in metric.networks for w in whose)
    return there and metric.applies(drawn)


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
    drawn = [m.name for m in choose(config.evaluation.metrics) if is_measured_in_training(m)]
    names = ["loss", *(f"{name}_{count}" for name in drawn for count in steps)]
    if (best := config.training.best_metric) not in names:
        raise OptionError("training.best_metric", best, f"one of {', '.join(names)}")


def is_measured_in_training(metric: Metric) -> bool:
    """Whether checkpoints can be kept by it: it needs no real pictures, and less is better."""
    return metric.lower_is_better and metric.compares_with != "reference"
