"""What a workdir says of its run: read from its files, whichever are there yet."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json
from slam_jax.config.options import Config
from slam_jax.drawing.ladder import COLUMNS
from slam_jax.drawing.metrics.metric import Metric
from slam_jax.drawing.report import SUMMARY_FILE
from slam_jax.drawing.strips import ROWS_FILE
from slam_jax.training.metric_log import read_rows
from slam_jax.training.patience import Patience
from slam_jax.training.workdir import (
    RUN_FILE,
    SAMPLES,
    TEACHER_FILE,
    TEACHER_METRICS_FILE,
    read_run,
)

MOST_LADDERS = 20
MOST_BYTES = 2_000_000  # of all strips
AGAIN = "run slam-jax train again with --resume"

Row = dict[str, float]  # of metrics.jsonl


@dataclass(frozen=True)
class Strip:
    """Pictures of one model in one number of steps, side by side.

    Attributes:
      steps: network evaluations.
      image: a WebP.
      at_border: share of their values at -1 or 1.
    """

    steps: int
    image: bytes
    at_border: float


@dataclass(frozen=True)
class Strips:
    """The pictures of a step ladder.

    Attributes:
      step: of the training.
      prompts: of the pictures in a strip.
      size: (width, height) of one of them, in pixels.
      teacher: in its largest number of steps.
      student: in each number of steps, ascending.
      pictures: of a row, all that were measured; 0: an older run did not say.
    """

    step: int
    prompts: tuple[str, ...]
    size: tuple[int, int]
    teacher: Strip
    student: tuple[Strip, ...]
    pictures: int = 0

    @property
    def layout(self) -> tuple:
        """What ladders have in common between which a reader can go back and forth."""
        return self.prompts, self.size, self.teacher.steps, [strip.steps for strip in self.student]

    @property
    def bytes(self) -> int:
        """Of its strips together."""
        return sum(len(strip.image) for strip in (self.teacher, *self.student))


@dataclass(frozen=True)
class RunData:
    """What is known of a run.

    Attributes:
      workdir: its folder.
      config: its options.
      record: "command", "versions", "devices" ...; of an older run only what its summary has.
      teacher: which it began with, see `Family.identity`.
      rows: of metrics, by step.
      ladders: by step.
      summary: of a run that has finished; else empty.
      teacher_metrics: such as "rmse_to_teacher_8", of the teacher's pictures in 8 steps.
    """

    workdir: Path
    config: Config
    record: dict[str, Any]
    teacher: dict[str, Any]
    rows: tuple[Row, ...] = ()
    ladders: tuple[Strips, ...] = ()
    summary: dict[str, Any] | None = None
    teacher_metrics: dict[str, float] | None = None

    @property
    def step(self) -> int:
        """The last one that something is known of."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def in_ladder(self) -> int:
        """Pictures in a row of a step ladder; 0: not known yet."""
        options, drawn = self.config.evaluation, self.ladders[-1].pictures if self.ladders else 0
        return options.batch or min(len(options.prompts), COLUMNS) or drawn

    def measured(self, metric: Metric, table: bool = False) -> int:
        """Of how many pictures a metric is in the ladders or the table; 0: not known."""
        options = self.config.evaluation
        if metric.networks:
            return options.pictures or self.in_ladder
        return (options.samples if table else 0) or self.in_ladder


def read_run_data(workdir: Path) -> RunData:
    """Reads all of it.

    Raises:
      InputError: it is the folder of no run, or a file is damaged; names the file.
    """
    config = read_run(workdir)
    summary = _read(workdir / SUMMARY_FILE)
    rows, training = read_rows(workdir), config.training
    step = int(rows[-1]["step"]) if rows else 0
    patience = Patience(training.patience, training.best_metric, rows if training.patience else ())
    last = step if patience.is_over else training.steps  # it may have ended early
    return RunData(
        workdir,
        config,
        {**(summary or {}), **(_read(workdir / RUN_FILE) or {})},
        _read(workdir / TEACHER_FILE) or {},
        rows,
        read_ladders(workdir / SAMPLES, last, step),
        summary,
        (_read(workdir / TEACHER_METRICS_FILE) or {}).get("metrics"),
    )


def names_of(rows: Sequence[Row]) -> list[str]:
    """Of all metrics, each once, in the order in which they appear."""
    return list(dict.fromkeys(chain.from_iterable(rows)))


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path, AGAIN) if path.exists() else None


def read_ladders(samples: Path, last: int, step: int) -> tuple[Strips, ...]:
    """The ladders of a run by step: those that show the same as the newest, of so many that a page
    can hold them.

    Args:
      samples: their folder.
      last: the step of "ladder", the one at the end.
      step: that the run has come to; what an interrupted run drew later is left out.
    """
    found = {}
    for path in sorted(samples.glob(f"*/{ROWS_FILE}")):  # "ladder" before that of the last step
        name = path.parent.name
        number = re.fullmatch(r"step_(\d+)", name)
        at = last if name == "ladder" else int(number[1]) if number else None
        if at is not None and at <= step and at not in found:
            found[at] = _read_strips(path, at)
    ladders = [found[at] for at in sorted(found)]
    return thinned([one for one in ladders if one.layout == ladders[-1].layout])


def _read_strips(path: Path, step: int) -> Strips:
    content = read_json(path, AGAIN)
    try:
        strips = {
            (row["model"], row["steps"]): Strip(
                row["steps"], (path.parent / row["file"]).read_bytes(), row["at_border"]
            )
            for row in content["rows"]
        }
        (teacher,) = (strip for (model, _), strip in strips.items() if model == "teacher")
        student = [strip for (model, _), strip in strips.items() if model == "student"]
        if not student:
            raise ValueError("no pictures by a student")
        width, height = content["size"]
        return Strips(
            step,
            tuple(content["prompts"]),
            (width, height),
            teacher,
            tuple(sorted(student, key=lambda strip: strip.steps)),
            content.get("pictures", 0),
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path}: damaged ({error!r}); {AGAIN}") from error


def thinned(
    ladders: Sequence[Strips], most: int = MOST_LADDERS, most_bytes: int = MOST_BYTES
) -> tuple[Strips, ...]:
    """Some of the ladders, evenly spread with the first and the last: as many as are allowed."""
    count = min(len(ladders), most)
    while count > 2 and sum(ladders[i].bytes for i in _spread(len(ladders), count)) > most_bytes:
        count -= 1
    return tuple(ladders[i] for i in _spread(len(ladders), count))


def _spread(total: int, count: int) -> list[int]:
    return [int(i) for i in np.linspace(0, total - 1, count).round()] if total else []
