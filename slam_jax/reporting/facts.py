"""What was run, and how it was measured, as names and values in words."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from slam_jax.config.describe import Description, describe
from slam_jax.config.options import Config
from slam_jax.drawing.metrics.registry import METRICS, choose, networks_of
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
        shown = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
        yield Fact("samples per second", shown, "median, in training")
    if "peak_memory_gb" in summary:
        yield Fact("memory of the host", f"{summary['peak_memory_gb']:.1f} GiB", "at the peak")
    if "seconds" in summary:
        yield Fact("time", duration(summary["seconds"]), "all of the last start that trained")
    evaluating, steps = seconds_of(run)
    if evaluating and steps:
        note = f"{duration(evaluating)} beside {duration(steps)} of training steps"
        yield Fact("evaluation", f"{evaluating / steps:.1%}", note)


def seconds_of(run: RunData) -> tuple[float, float]:
    """(of the step ladders, of the training steps), as the rows have them, of all starts together.

    A step whose time no row has, as it was compiled, does not count.
    """
    evaluating = steps = before = 0.0
    for row in run.rows:
        evaluating += row.get("evaluation_seconds", 0)
        if speed := row.get("samples_per_second"):
            steps += (row["step"] - before) * run.config.training.batch_size / speed
        before = row["step"]
    return evaluating, steps


def duration(seconds: float) -> str:
    """Such as "3 min 20 s", as exact as it matters."""
    if float(f"{seconds:.3g}") < 60:
        return f"{seconds:.3g} s"
    if (whole := round(seconds)) < 600:
        return f"{whole // 60} min {whole % 60} s"
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
    if prompts:
        yield Fact("prompts", " · ".join(dict.fromkeys(prompts)))
    for model in ("teacher", "student"):
        steps = getattr(evaluation, f"{model}_steps")
        yield Fact(f"steps of the {model}", ", ".join(map(str, steps)))
    guidance = 1 + run.config.method.w
    yield Fact("guidance", f"{guidance:g}", f"of the teacher; w = {guidance - 1:g}, as trained")
    yield Fact("seed", str(run.config.seed), "teacher and student start from the same noise")
    yield from _measured(run)


def _measured(run: RunData) -> Iterator[Fact]:
    """The metrics of pixels and those of networks, each with the pictures that they are of."""
    evaluation = run.config.evaluation
    chosen = [METRICS[name] for name in evaluation.metrics if name in METRICS]
    if not evaluation.metrics:
        chosen = choose(())
    by_networks = [metric for metric in chosen if metric.networks]
    pixels = [metric for metric in chosen if not metric.networks]
    if pixels:
        count = _pictures(run.measured(pixels[0], table=True))
        note = f"in the table of {count}, of noise that no ladder has"
        yield Fact("metrics of pixels", ", ".join(m.title for m in pixels), note)
    if by_networks:
        count = _pictures(run.measured(by_networks[0]))
        note = f"of {count}, of the same noise in ladders and table"
        yield Fact("metrics of networks", ", ".join(m.title for m in by_networks), note)
        where = {name: path for name, _, path in (w.partition("=") for w in evaluation.weights)}
        for name in networks_of(by_networks):
            yield Fact(f"weights of {name}", where.get(name, "as published"))


def _pictures(count: int) -> str:
    return f"{count:,} pictures" if count else "the ladder's number of pictures"


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
