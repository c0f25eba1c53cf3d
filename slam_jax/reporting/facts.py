"""What was run, and how it was measured, as names and values in words."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from slam_jax.config.describe import Description, describe
from slam_jax.config.options import Config
from slam_jax.drawing.metrics.registry import METRICS
from slam_jax.reporting.data import RunData

SHOWN_ELSEWHERE = ("config.name", "config.seed", "config.evaluation.prompts")
PRINT = 12  # letters of a fingerprint


class Fact(NamedTuple):
    """A name and its value.

    Attributes:
      name, value: of it.
      note: what else there is to know; "" if nothing.
    """

    name: str
    value: str
    note: str = ""


def headline(run: RunData) -> Iterator[Fact]:
    """The few numbers that a reader looks for first."""
    training, summary = run.config.training, run.summary or {}
    last = run.rows[-1] if run.rows else {}
    seen = run.step * training.batch_size
    yield Fact("training steps", f"{run.step:,}", f"of {training.steps:,}")
    yield Fact("samples seen", f"{seen:,}", f"{training.batch_size:,} in a step")
    if "loss" in last:
        yield Fact("loss", f"{last['loss']:.3g}", "mean of the last row")
    speeds = [row["samples_per_second"] for row in run.rows if "samples_per_second" in row]
    if speeds:
        speed = sorted(speeds)[len(speeds) // 2]
        yield Fact("samples per second", f"{speed:,.3g}", "median, in training")
    if "peak_memory_gb" in summary:
        yield Fact("memory of the host", f"{summary['peak_memory_gb']:.1f} GiB", "at the peak")
    if "seconds" in summary:
        yield Fact("time", duration(summary["seconds"]), "all of the last start")
    if share := evaluation_share(summary):
        seconds = duration(summary["evaluation_seconds"])
        yield Fact("evaluation", f"{share:.1%}", f"{seconds}, compared with all else")


def evaluation_share(summary: dict[str, Any]) -> float | None:
    """Seconds of the evaluations as a share of all other seconds; None: not recorded."""
    if "evaluation_seconds" not in summary or "seconds" not in summary:
        return None
    others = summary["seconds"] - summary["evaluation_seconds"]
    return summary["evaluation_seconds"] / others if others > 0 else None


def duration(seconds: float) -> str:
    """Such as "3 min 20 s", as exact as it matters."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def what_was_run(run: RunData) -> Iterator[Fact]:
    """Command, teacher, data, machine."""
    config, record = run.config, run.record
    if command := record.get("command"):
        yield Fact("command", command)
    yield Fact("workdir", str(run.workdir.resolve()))
    if started := record.get("started"):
        yield Fact("last started", started)
    teacher = run.teacher
    where = teacher.get("path") or config.teacher.path or "trained here"
    revision = teacher.get("revision", "")
    yield Fact("teacher", where, " ".join([config.teacher.family.replace("_", " "), revision]))
    for part, fingerprint in teacher.get("fingerprints", {}).items():
        yield Fact(f"fingerprint of its {part}", str(fingerprint)[:PRINT])
    yield Fact("data", config.data.source)
    yield Fact("seed", str(config.seed))
    if devices := record.get("devices"):
        yield Fact("devices", ", ".join(devices))
    if versions := record.get("versions"):
        yield Fact("versions", ", ".join(f"{name} {number}" for name, number in versions.items()))


def protocol(run: RunData) -> Iterator[Fact]:
    """How the pictures were drawn and measured."""
    evaluation = run.config.evaluation
    prompts = evaluation.prompts or (run.ladders[-1].prompts if run.ladders else ())
    if prompts := tuple(dict.fromkeys(prompts)):
        yield Fact("prompts", " · ".join(prompts))
    for model in ("teacher", "student"):
        steps = getattr(evaluation, f"{model}_steps")
        yield Fact(f"steps of the {model}", ", ".join(map(str, steps)))
    guidance = 1 + run.config.method.w
    yield Fact("guidance", f"{guidance:g}", f"of the teacher; w = {guidance - 1:g}, as trained")
    yield Fact("seed", str(run.config.seed), "teacher and student start from the same noise")
    count = evaluation.samples or evaluation.batch or len(prompts)
    if count:
        yield Fact("pictures in a row of the table", f"{count:,}", "of noise that no ladder has")
    chosen = [METRICS[name].title for name in evaluation.metrics or METRICS if name in METRICS]
    yield Fact("metrics", ", ".join(chosen), "" if evaluation.metrics else "all that apply")


class Choice(NamedTuple):
    """An option of a run.

    Attributes:
      key: below config.
      value, default: in words.
      doc: what it means.
    """

    key: str
    value: str
    default: str
    doc: str


def options_of_method(config: Config) -> list[Choice]:
    """All options of the method."""
    return [
        _choice(here, default)
        for here, default in _with_defaults(config)
        if here.key.startswith("config.method.")
    ]


def changed_options(config: Config) -> list[Choice]:
    """Other options that are not the defaults."""
    return [
        _choice(here, default)
        for here, default in _with_defaults(config)
        if here.default != default.default
        and not here.key.startswith("config.method.")
        and here.key not in SHOWN_ELSEWHERE
    ]


def _with_defaults(config: Config) -> Iterator[tuple[Description, Description]]:
    """Each option of the config, beside the same one as it is by default."""
    defaults = dataclasses.replace(Config(), method=type(config.method)())
    for pair in zip(describe(config), describe(defaults), strict=True):
        if pair[0].default is not None:  # no group
            yield pair


def _choice(here: Description, default: Description) -> Choice:
    key = here.key.removeprefix("config.")
    return Choice(key, _shown(here.default), _shown(default.default), here.doc)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value or "none"
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "none"
    return json.dumps(value) if isinstance(value, dict) else f"{value}"
