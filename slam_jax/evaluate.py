"""The judge of a run: Frechet distances, label accuracy, distance to the teacher, pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from slam_jax import pictures
from slam_jax.config import Evaluation
from slam_jax.data import digits
from slam_jax.files import write_whole
from slam_jax.metrics import Classifier, frechet_distance
from slam_jax.sample import Sampler
from slam_jax.train import Params

BATCH = 100  # every picture is drawn in batches of this size: one compilation per step count
LADDER_COLUMNS = 20


class Judge:
    """Draws samples of teacher and student and measures them against the real digits.

    Args:
      draw_teacher, draw_student: samplers.
      teacher: the teacher's weights.
      options: step counts and number of samples.
      seed: of all the samples.
    """

    def __init__(
        self,
        draw_teacher: Sampler,
        draw_student: Sampler,
        teacher: Params,
        options: Evaluation,
        seed: int,
    ):
        self._draw_teacher, self._draw_student = draw_teacher, draw_student
        self._teacher, self._options, self._seed = teacher, options, seed
        self._labels = np.arange(options.samples) % 10
        self._teacher_row: np.ndarray | None = None

    def save_ladder(self, path: Path, student: Params) -> None:
        """The step ladder: a row for the teacher, one for each step count of the student; the same
        noise, every digit."""
        tokens = digits.tokenize(np.arange(BATCH) % LADDER_COLUMNS // 2)
        most = max(self._options.teacher_steps)
        if self._teacher_row is None:
            self._teacher_row = np.asarray(
                self._draw_teacher(self._teacher, tokens, self._seed, 0, steps=most)
            )
        rows = {f"teacher, {most}": self._teacher_row}
        for steps in self._options.student_steps:
            rows[f"student, {steps}"] = np.asarray(
                self._draw_student(student, tokens, self._seed, 0, steps=steps)
            )
        pictures.save(
            pictures.grid({name: row[:LADDER_COLUMNS] for name, row in rows.items()}), path
        )

    def measure(self, student: Params) -> list[dict[str, Any]]:
        """One row of metrics for each step count of the teacher and of the student."""
        images, labels = digits.load()
        classifier = Classifier.fit(images, labels)
        models = {
            "teacher": (self._draw_teacher, self._teacher, self._options.teacher_steps),
            "student": (self._draw_student, student, self._options.student_steps),
        }
        drawn = {
            (model, steps): self._draw(draw, params, steps)
            for model, (draw, params, counts) in models.items()
            for steps in counts
        }
        reference = drawn["teacher", max(self._options.teacher_steps)]
        return [
            {
                "model": model,
                "steps": steps,
                "fd_pixels": frechet_distance(_flat(x), _flat(images)),
                "fd_features": frechet_distance(
                    classifier.features(x), classifier.features(images)
                ),
                "label_accuracy": classifier.label_accuracy(x, self._labels),
                "fd_to_teacher": frechet_distance(_flat(x), _flat(reference)),
                "rmse_to_teacher": float(np.sqrt(np.mean((x - reference) ** 2))),
            }
            for (model, steps), x in drawn.items()
        ]

    def _draw(self, draw: Sampler, params: Params, steps: int) -> np.ndarray:
        """`options.samples` images, a batch at a time; none shares its noise with the ladder."""
        drawn = []
        for start in range(0, len(self._labels), BATCH):
            tokens = digits.tokenize(np.resize(self._labels[start : start + BATCH], BATCH))
            drawn.append(np.asarray(draw(params, tokens, self._seed, BATCH + start, steps=steps)))
        return np.concatenate(drawn)[: len(self._labels)]


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows of `Judge.measure` as a Markdown table."""
    head = [
        "model",
        "steps",
        "FD pixels",
        "FD features",
        "label accuracy",
        "FD to teacher",
        "RMSE to teacher",
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        numbers = [f"{value:.3f}" for value in list(row.values())[2:]]
        lines.append([row["model"], str(row["steps"]), *numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_report(workdir: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Writes the table as summary.md, then facts and rows as summary.json, each whole or not."""
    content = json.dumps({**facts, "results": rows}, indent=2)
    for name, text in (("summary.md", to_markdown(rows)), ("summary.json", content)):
        write_whole(workdir / name, text)
