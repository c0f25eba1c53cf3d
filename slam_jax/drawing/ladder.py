"""The step ladder: pictures of the same prompts and noise by teacher and student, during training
and for the report."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slam_jax.config.options import Evaluation
from slam_jax.data.reference import Reference
from slam_jax.drawing import pictures
from slam_jax.drawing.metrics.metric import Drawn
from slam_jax.drawing.metrics.registry import measure
from slam_jax.drawing.samplers import Sampler
from slam_jax.drawing.seen import Seen
from slam_jax.drawing.strips import save_strips
from slam_jax.families.pipeline import DENOISER, Frozen, Params, Pipeline
from slam_jax.features.extract import Extractor
from slam_jax.parallel.processes import is_main

COLUMNS = 20  # pictures in a row, at most


@dataclass(frozen=True)
class Artists:
    """Who draws.

    Attributes:
      pipeline: of both.
      frozen: all frozen weights, the teacher's among them.
      teacher, student: samplers.
      prompts: texts -> a batch for these; None: as the pipeline makes it.
    """

    pipeline: Pipeline
    frozen: Frozen
    teacher: Sampler
    student: Sampler
    prompts: Callable[[Sequence[str]], dict[str, np.ndarray]] | None = None


class Ladder:
    """Pictures of the same prompts and noise: the teacher's in many steps, the student's in each
    of its step counts.

    Args:
      artists: who draws.
      options: step counts, prompts and metrics.
      seed: of the noise.
      extractor: networks that metrics read; None: none.
      folder: where the teacher's features are kept between starts; None: nowhere.
    """

    def __init__(
        self,
        artists: Artists,
        options: Evaluation,
        seed: int,
        extractor: Extractor | None = None,
        folder: Path | None = None,
    ):
        self._artists, self._options, self._seed = artists, options, seed
        self._texts = options.prompts or artists.pipeline.example_prompts
        self.batch = options.batch or min(len(self._texts), COLUMNS)
        self._most = max(options.teacher_steps)
        self._teacher_images: np.ndarray | None = None
        self._seen = None
        if extractor is not None:
            teacher, texts = partial(self._draw, "teacher", self._most), self._measured_prompts()
            how = {"steps": self._most, "seed": seed}
            self._seen = Seen(extractor, texts, self.batch, teacher, how, folder)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Those of the ladder, one for each picture: the columns of a row show all of them."""
        columns = min(self.batch, COLUMNS)
        places = np.arange(self.batch) % columns * len(self._texts) // columns
        return tuple(self._texts[place] for place in places)

    def draw(self, student: Params) -> dict[tuple[str, int], np.ndarray]:
        """(model, steps) -> images in [-1, 1], [B, H, W, C]; the teacher's are drawn once."""
        if self._teacher_images is None:
            self._teacher_images = self._draw("teacher", self._most, self.prompts)
        images = {("teacher", self._most): self._teacher_images}
        for steps in self._options.student_steps:
            images["student", steps] = self._draw("student", steps, self.prompts, student=student)
        return images

    def show(self, path: Path, student: Params) -> dict[tuple[str, int], np.ndarray]:
        """Draws, and writes the picture with a row for each step count."""
        drawn = self.draw(student)
        rows = {f"{model}, {steps}": x[:COLUMNS] for (model, steps), x in drawn.items()}
        if is_main():
            pictures.save(pictures.grid(rows), path)
            save_strips(path.with_suffix(""), drawn, self.prompts, COLUMNS)
        return drawn

    def save(self, path: Path, student: Params) -> dict[str, float]:
        """Writes the picture, and measures.

        Returns:
          "rmse_to_teacher_4" and so on: each metric that needs no real pictures, in so many steps.
        """
        (_, reference), *others = self.show(path, student).items()
        measured = {}
        for (model, steps), images in others:
            found = self._measure(model, steps, student, Drawn(images, self.prompts, reference))
            measured |= {f"{name}_{steps}": value for name, value in found.items()}
        return measured

    def teacher_metrics(self) -> dict[str, float]:
        """The same metrics of the teacher in its smaller numbers of steps, to compare with."""
        if self._teacher_images is None:
            self._teacher_images = self._draw("teacher", self._most, self.prompts)
        measured = {}
        for steps in self._options.teacher_steps:
            if steps != self._most:
                images = self._draw("teacher", steps, self.prompts)
                drawn = Drawn(images, self.prompts, self._teacher_images)
                found = self._measure("teacher", steps, None, drawn)
                measured |= {f"{name}_{steps}": value for name, value in found.items()}
        return measured

    def report(self, student: Params, reference: Reference | None) -> list[dict[str, Any]]:
        """A row of metrics for each model and step count. Metrics of pixels are of pictures whose
        noise is none of the ladder's; those of networks are of the same as during training.

        Args:
          student: its weights.
          reference: real pictures, where there are any.
        """
        count = self._options.samples or self.batch
        prompts = tuple(self._texts[i % len(self._texts)] for i in range(count))
        teacher = self._draw("teacher", self._most, prompts, self.batch)
        rows = []
        for model, steps in self._rows():
            images = teacher
            if (model, steps) != ("teacher", self._most):
                images = self._draw(model, steps, prompts, self.batch, student)
            drawn = Drawn(images, prompts, teacher, reference)
            found = self._measure(model, steps, student, drawn)
            rows.append({"model": model, "steps": steps, **found})
        return rows

    def _measure(
        self, model: str, steps: int, student: Params | None, drawn: Drawn
    ) -> dict[str, float]:
        """The metrics of pictures, and those of networks, which see as many as the options say."""
        found = measure(drawn, self._options.metrics)
        if self._seen is not None:
            features = self._seen.by(partial(self._draw, model, steps, student=student))
            seen = Drawn(None, self._seen.prompts, features=features)
            found |= measure(seen, self._options.metrics)
        return found

    def _measured_prompts(self) -> tuple[str, ...]:
        """Those of the pictures that networks see, the ladder's first."""
        count = self._options.pictures or self.batch
        more = (self._texts[i % len(self._texts)] for i in range(count - self.batch))
        return (*self.prompts, *more)[:count]

    def _rows(self) -> Iterator[tuple[str, int]]:
        for model in ("teacher", "student"):
            for steps in getattr(self._options, f"{model}_steps"):
                yield model, steps

    def _draw(
        self,
        model: str,
        steps: int,
        prompts: Sequence[str],
        first: int = 0,
        student: Params | None = None,
    ) -> np.ndarray:
        """A picture for each prompt, a batch at a time: one program for each number of steps."""
        artists, drawn = self._artists, []
        params = artists.frozen[DENOISER] if model == "teacher" else student
        for start in range(0, len(prompts), self.batch):
            texts = np.resize(prompts[start : start + self.batch], self.batch)
            batch = (artists.prompts or artists.pipeline.prompts)([str(text) for text in texts])
            place = self._seed, first + start
            draw = getattr(artists, model)
            drawn.append(np.asarray(draw(artists.frozen, params, batch, place, steps=steps)))
        return np.concatenate(drawn)[: len(prompts)]
