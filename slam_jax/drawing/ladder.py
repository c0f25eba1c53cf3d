"""The step ladder and the report of a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from slam_jax.base.files import write_whole
from slam_jax.config.options import Evaluation
from slam_jax.drawing import pictures
from slam_jax.drawing.samplers import Sampler
from slam_jax.families.family import Batch, Frozen, Params
from slam_jax.parallel.processes import is_main

TITLES = {
    "model": "model",
    "steps": "steps",
    "fd_pixels": "FD pixels",
    "fd_features": "FD features",
    "label_accuracy": "label accuracy",
    "fd_to_teacher": "FD to teacher",
    "rmse_to_teacher": "RMSE to teacher",
}


class Ladder:
    """Pictures of the same prompts and noise: the teacher's in many steps, the student's in each
    of its step counts.

    Args:
      draw_teacher, draw_student: samplers.
      frozen: the weights around the student, the teacher's among them.
      prompts: batch that is drawn.
      options: step counts.
      seed: of the noise.
    """

    def __init__(
        self,
        draw_teacher: Sampler,
        draw_student: Sampler,
        frozen: Frozen,
        prompts: Batch,
        options: Evaluation,
        seed: int,
    ):
        self.draw_teacher, self.draw_student = draw_teacher, draw_student
        self._frozen, self._prompts, self._options, self._seed = frozen, prompts, options, seed
        self._teacher_images: np.ndarray | None = None

    def draw(self, student: Params) -> dict[tuple[str, int], np.ndarray]:
        """(model, steps) -> images in [-1, 1], [B, H, W, C]; the teacher's are drawn once."""
        most = max(self._options.teacher_steps)
        if self._teacher_images is None:
            self._teacher_images = self.draw_teacher_in(most)
        images = {("teacher", most): self._teacher_images}
        for steps in self._options.student_steps:
            images["student", steps] = np.asarray(
                self.draw_student(self._frozen, student, self._prompts, self._seed, 0, steps=steps)
            )
        return images

    def draw_teacher_in(self, steps: int) -> np.ndarray:
        """The teacher's images in so many steps."""
        teacher = self._frozen["unet"]
        images = self.draw_teacher(self._frozen, teacher, self._prompts, self._seed, 0, steps=steps)
        return np.asarray(images)

    def save(self, path: Path, student: Params, columns: int, scale: int) -> dict[str, float]:
        """Writes the picture: a row for each step count, its first `columns` images, each pixel
        `scale` pixels wide.

        Returns:
          "rmse_to_teacher_4" and so on: the student's distance to the teacher, in so many steps.
        """
        drawn = self.draw(student)
        rows = {f"{model}, {steps}": x[:columns] for (model, steps), x in drawn.items()}
        if is_main():
            pictures.save(pictures.grid(rows, scale), path)
        (_, reference), *others = drawn.items()
        return {f"rmse_to_teacher_{steps}": rmse(x, reference) for (_, steps), x in others}


def rmse(x: np.ndarray, y: np.ndarray) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean((x - y) ** 2)))


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of metrics, all with the same keys of TITLES, as a Markdown table."""
    head = [TITLES[name] for name in rows[0]]
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
