"""Handwritten digits: the teacher is trained on the spot, and a classifier judges the pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from slam_jax.base.errors import options_of, prefixed
from slam_jax.config.options import Config
from slam_jax.data import digits
from slam_jax.data.sources import check_used
from slam_jax.drawing.ladder import Ladder, rmse
from slam_jax.drawing.metrics import Classifier, frechet_distance
from slam_jax.drawing.samplers import Sampler
from slam_jax.families.digits_pipeline import digits_pipeline
from slam_jax.families.family import Batch, Frozen, Params
from slam_jax.formats import weight_files
from slam_jax.formats.flax_folder import PARAMS_FILE, SavedModel, save_model
from slam_jax.recipes.job import Job
from slam_jax.recipes.teacher import check_teacher, train_teacher
from slam_jax.training.step import check_batch_size

BATCH = 100  # every picture is drawn in batches of this size: one compilation per step count
LADDER_COLUMNS = 20


class DigitsJob(Job):
    """Raises InputError where the config does not fit the digits, the devices or the teacher."""

    def __init__(self, config: Config, workdir: Path, mesh: Mesh):
        self._config, self._folder = config, Path(config.teacher.path or workdir / "teacher")
        with prefixed("config.data: "):
            check_used(config.data, "digits")
        with options_of("config.digits"):
            pipeline = digits_pipeline(config.digits.unet, config.digits.prediction_type)
            self.pipeline = replace(pipeline, execution=config.execution)
        with options_of("config.digits.training"):
            check_batch_size(config.digits.training, mesh)
        check_teacher(config.digits, self._folder)

    def weights(self, mesh: Mesh) -> Frozen:
        teacher = train_teacher(self.pipeline, self._config.digits, self._folder, mesh)
        prints = {"unet": weight_files.fingerprint(self._folder / PARAMS_FILE)}
        self._info = {**teacher.info, "fingerprints": prints}
        return {"unet": teacher.params}

    def source(self) -> digits.Source:
        return digits.Source()

    def ladder_prompts(self) -> Batch:
        return {"tokens": digits.tokenize(np.arange(BATCH) % LADDER_COLUMNS // 2)}

    def save_ladder(self, ladder: Ladder, student: Params, path: Path) -> dict[str, float]:
        return ladder.save(path, student, columns=LADDER_COLUMNS, scale=5)

    def measure(self, ladder: Ladder, frozen: Frozen, student: Params) -> list[dict[str, Any]]:
        """Frechet distances to the real digits, label accuracy, distances to the teacher."""
        options = self._config.evaluation
        images, labels = digits.load()
        classifier = Classifier.fit(images, labels)
        wanted = np.arange(options.samples) % 10
        models = {
            "teacher": (ladder.draw_teacher, frozen["unet"], options.teacher_steps),
            "student": (ladder.draw_student, student, options.student_steps),
        }
        drawn = {
            (model, steps): self._draw(draw, frozen, params, steps, wanted)
            for model, (draw, params, counts) in models.items()
            for steps in counts
        }
        reference = drawn["teacher", max(options.teacher_steps)]
        return [
            {
                "model": model,
                "steps": steps,
                "fd_pixels": frechet_distance(_flat(x), _flat(images)),
                "fd_features": frechet_distance(
                    classifier.features(x), classifier.features(images)
                ),
                "label_accuracy": classifier.label_accuracy(x, wanted),
                "fd_to_teacher": frechet_distance(_flat(x), _flat(reference)),
                "rmse_to_teacher": rmse(x, reference),
            }
            for (model, steps), x in drawn.items()
        ]

    def _draw(
        self, draw: Sampler, frozen: Frozen, params: Params, steps: int, labels: np.ndarray
    ) -> np.ndarray:
        """An image for each label, a batch at a time; none shares its noise with the ladder."""
        drawn = []
        for start in range(0, len(labels), BATCH):
            batch = {"tokens": digits.tokenize(np.resize(labels[start : start + BATCH], BATCH))}
            images = draw(frozen, params, batch, self._config.seed, BATCH + start, steps=steps)
            drawn.append(np.asarray(images))
        return np.concatenate(drawn)[: len(labels)]

    def teacher_info(self) -> dict[str, Any]:
        return self._info

    def export(self, student: SavedModel, folder: Path) -> None:
        save_model(folder, student)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)
