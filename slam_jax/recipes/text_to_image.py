"""Stable Diffusion teachers: a diffusers folder in, a diffusers folder out."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from slam_jax.base.errors import InputError, prefixed
from slam_jax.base.files import write_whole
from slam_jax.config.options import Config, Data
from slam_jax.data.batches import Source
from slam_jax.data.prepared import Prepared, check_fits
from slam_jax.data.sources import open_source
from slam_jax.drawing.ladder import Ladder, rmse
from slam_jax.families.family import Batch, Frozen, Params
from slam_jax.families.load import is_student, read_pipeline, read_surroundings, read_unet
from slam_jax.formats.diffusers_folder import resolve
from slam_jax.formats.flax_folder import SavedModel
from slam_jax.formats.tokenizer import tokenize
from slam_jax.parallel.processes import is_main
from slam_jax.recipes.export import write_folder
from slam_jax.recipes.job import Job
from slam_jax.recipes.student import TEACHER_FILE, other_part, teacher_info


class TextToImageJob(Job):
    """Raises InputError where the teacher cannot be found, read, or is another than before."""

    def __init__(self, config: Config, workdir: Path, mesh: Mesh):
        self._config, self._workdir = config, workdir
        options, size = config.teacher, config.data.resolution
        with prefixed("config.teacher.path = "):
            self._folder = resolve(options.path, options.revision, options.variant)
        pipeline = read_pipeline(self._folder, size, size)
        self.pipeline = replace(pipeline, execution=config.execution)
        if is_student(self.pipeline):
            raise InputError(
                f"config.teacher.path = {options.path!r}: a few-step student (LCMScheduler or "
                "time_cond_proj_dim); give the model that it was distilled from, or another teacher"
            )
        self._identity = teacher_info(self._folder)
        self._check_teacher()
        with prefixed("config.data: "):
            self._source = self._open_source(config.data)
        precision = config.precision
        self._weights = {
            "unet": read_unet(self._folder, self.pipeline.unet, "float32"),
            **read_surroundings(self._folder, self.pipeline, precision.text_encoder, precision.vae),
        }

    def _open_source(self, data: Data) -> Source:
        # Not with the pipeline itself: where workers read, its arrays would start a backend.
        source = open_source(data, partial(tokenize, self.pipeline.tokenizers))
        if isinstance(source, Prepared):
            teacher, prints = self._config.teacher.path, self._identity["fingerprints"]
            check_fits(Path(data.source), source.info, teacher, prints, data.resolution)
        return source

    def _check_teacher(self) -> None:
        record = self._workdir / TEACHER_FILE
        if not record.exists():
            return
        try:
            began_with = json.loads(record.read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"{record}: damaged ({error}); choose another --workdir") from error
        if part := other_part(began_with, self._identity):
            raise InputError(
                f"config.teacher.path = {self._config.teacher.path!r}: its {part} is not the one "
                f"that the run in {self._workdir} began with, of {began_with.get('path')} "
                f"{began_with.get('revision')}; give that teacher or choose another --workdir"
            )

    def weights(self, mesh: Mesh) -> Frozen:
        if is_main():
            write_whole(self._workdir / TEACHER_FILE, json.dumps(self._identity, indent=2))
        weights, self._weights = self._weights, {}
        return weights

    def source(self) -> Source:
        return self._source

    def ladder_prompts(self) -> Batch:
        prompts = self._config.evaluation.prompts
        for prompt in prompts:
            if cut := self.pipeline.cut(prompt):
                print(f"note: config.evaluation.prompts: cut off: {cut!r}", file=sys.stderr)
        return self.pipeline.prompts(prompts)

    def save_ladder(self, ladder: Ladder, student: Params, path: Path) -> dict[str, float]:
        return ladder.save(path, student, columns=len(self._config.evaluation.prompts), scale=1)

    def measure(self, ladder: Ladder, frozen: Frozen, student: Params) -> list[dict[str, Any]]:
        """Distance of the ladder's pictures to the teacher's of the same prompt and noise."""
        first, *others = sorted(self._config.evaluation.teacher_steps, reverse=True)
        drawn = ladder.draw(student)
        reference = drawn["teacher", first]
        drawn |= {("teacher", steps): ladder.draw_teacher_in(steps) for steps in others}
        return [
            {
                "model": model,
                "steps": steps,
                "rmse_to_teacher": rmse(x, reference),
            }
            for (model, steps), x in drawn.items()
        ]

    def teacher_info(self) -> dict[str, Any]:
        return self._identity

    def export(self, student: SavedModel, folder: Path) -> None:
        write_folder(student, self._folder, folder)
