"""The step ladder: pictures of the same prompts and noise by teacher and student, during training
and for the report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slam_jax.config.options import Evaluation
from slam_jax.data.reference import Reference
from slam_jax.drawing import pictures
from slam_jax.drawing.metrics.metric import Drawn
from slam_jax.drawing.metrics.registry import measure
from slam_jax.drawing.samplers import Sampler
from slam_jax.drawing.strips import save_strips
from slam_jax.families.pipeline import DENOISER, Frozen, Params, Pipeline
from slam_jax.parallel.processes import is_main

COLUMNS = 20  # pictures in a row, at most


@dataclass(frozen=True)
class Artists:
    """Who draws.

    Attributes:
      pipeline: of both.
      frozen: all frozen weights, the teacher's among them.
      teacher, student: samplers.
    """

    pipeline: Pipeline
    frozen: Frozen
    teacher: Sampler
    student: Sampler


class Ladder:
    """Pictures of the same prompts and noise: the teacher's in many steps, the student's in each
    of its step counts.

    Args:
      artists: who draws.
      options: step counts, prompts and metrics.
      seed: of the noise.
    """

    def __init__(self, artists: Artists, options: Evaluation, seed: int):
        self._artists, self._options, self._seed = artists, options, seed
        self._texts = options.prompts or artists.pipeline.example_prompts
        self.batch = options.batch or len(self._texts)
        self._teacher_images: np.ndarray | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """Those of the ladder, one for each picture: the columns of a row show all of them."""
        columns = min(self.batch, COLUMNS)
        places = np.arange(self.batch) % columns * len(self._texts) // columns
        return tuple(self._texts[place] for place in places)

    def draw(self, student: Params) -> dict[tuple[str, int], np.ndarray]:
        """(model, steps) -> images in [-1, 1], [B, H, W, C]; the teacher's are drawn once."""
        most = max(self._options.teacher_steps)
        if self._teacher_images is None:
            self._teacher_images = self._draw("teacher", most, self.prompts)
        images = {("teacher", most): self._teacher_images}
        for steps in self._options.student_steps:
            images["student", steps] = self._draw("student", steps, self.prompts, student)
        return images

    def save(self, path: Path, student: Params) -> dict[str, float]:
        """Writes the picture, a row for each step count, and its rows in a folder of its name.

        Returns:
          "rmse_to_teacher_4" and so on: each metric that needs no real pictures, in so many steps.
        """
        drawn = self.draw(student)
        rows = {f"{model}, {steps}": x[:COLUMNS] for (model, steps), x in drawn.items()}
        if is_main():
            pictures.save(pictures.grid(rows), path)
            save_strips(path.with_suffix(""), drawn, self.prompts, COLUMNS)
        (_, reference), *others = drawn.items()
        measured = {}
        for (_, steps), images in others:
            found = measure(Drawn(images, self.prompts, reference), self._options.metrics)
            measured |= {f"{name}_{steps}": value for name, value in found.items()}
        return measured

    def report(self, student: Params, reference: Reference | None) -> list[dict[str, Any]]:
        """A row of metrics for each model and step count, of pictures whose noise is none of the
        ladder's.

        Args:
          student: its weights.
          reference: real pictures, where there are any.
        """
        count = self._options.samples or self.batch
        prompts = tuple(self._texts[i % len(self._texts)] for i in range(count))
        teacher = self._draw("teacher", max(self._options.teacher_steps), prompts, first=self.batch)
        rows = []
        for model, steps in self._rows():
            images = teacher
            if (model, steps) != ("teacher", max(self._options.teacher_steps)):
                images = self._draw(model, steps, prompts, student, self.batch)
            drawn = Drawn(images, prompts, teacher, reference)
            rows.append({"model": model, "steps": steps, **measure(drawn, self._options.metrics)})
        return rows

    def _rows(self) -> Iterator[tuple[str, int]]:
        for model in ("teacher", "student"):
            for steps in getattr(self._options, f"{model}_steps"):
                yield model, steps

    def _draw(
        self,
        model: str,
        steps: int,
        prompts: Sequence[str],
        student: Params | None = None,
        first: int = 0,
    ) -> np.ndarray:
        """A picture for each prompt, a batch at a time: one program for each number of steps."""
        artists, drawn = self._artists, []
        params = artists.frozen[DENOISER] if model == "teacher" else student
        for start in range(0, len(prompts), self.batch):
            texts = np.resize(prompts[start : start + self.batch], self.batch)
            batch = artists.pipeline.prompts([str(text) for text in texts])
            place = self._seed, first + start
            draw = getattr(artists, model)
            drawn.append(np.asarray(draw(artists.frozen, params, batch, place, steps=steps)))
        return np.concatenate(drawn)[: len(prompts)]
