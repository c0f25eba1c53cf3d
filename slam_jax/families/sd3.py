"""Stable Diffusion 3 and 3.5: a folder of diffusers in, a folder of diffusers out."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from slam_jax.base.errors import InputError, prefixed
from slam_jax.config.options import Precision, Teacher
from slam_jax.config.validate import method_of
from slam_jax.families.family import LoadOptions, Model
from slam_jax.families.pipeline import DENOISER, Frozen
from slam_jax.families.published_model import PublishedModel
from slam_jax.families.sd3_folder import (
    FAMILY,
    WITHOUT_T5,
    is_student,
    read_pipeline,
    read_transformer,
)
from slam_jax.families.sd3_pipeline import StableDiffusion3Pipeline
from slam_jax.families.stable_diffusion_folder import RECORD_FILE, read_record, read_surroundings
from slam_jax.formats.diffusers_folder import resolve
from slam_jax.formats.flax_folder import SavedModel
from slam_jax.formats.model_index import CLASSES_3, classes_in


class StableDiffusion3(PublishedModel):
    """A teacher in a folder or on the hub."""

    name = FAMILY
    pipeline: StableDiffusion3Pipeline

    @classmethod
    def open(
        cls, teacher: Teacher, folder: Path, size: int | None = None, weights: bool = True
    ) -> "StableDiffusion3":
        with prefixed("config.teacher.path = "):
            found = resolve(teacher.path, teacher.revision, teacher.variant, weights)
        pipeline = read_pipeline(found, size, size)
        if is_student(found, pipeline):
            raise InputError(
                f"config.teacher.path = {teacher.path!r}: a few-step student ({RECORD_FILE}); give "
                "the model that it was distilled from, or another teacher"
            )
        if not pipeline.has_t5:
            print(f"note: {teacher.path}: {WITHOUT_T5}", file=sys.stderr)
        # Whoever draws with a student of it draws at the size that it is trained at.
        network = replace(pipeline.network, sample_size=pipeline.latent_shape[0])
        return cls(replace(pipeline, network=network), found)

    @classmethod
    def reads(cls, folder: Path) -> bool:
        return classes_in(folder) is CLASSES_3

    @classmethod
    def load(cls, name: str, options: LoadOptions) -> Model:
        folder = resolve(name, options.revision, options.variant)
        pipeline = read_pipeline(folder, options.height, options.width)
        if options.loras:
            raise InputError(f"--lora {options.loras[0]}: {name} is of a family without LoRA files")
        record, method = read_record(folder), None
        if is_student(folder, pipeline):
            method = method_of(record, folder.path / RECORD_FILE)
        return Model(
            pipeline=pipeline,
            frozen=read_surroundings(folder, pipeline, options.dtype, "float32"),
            params=read_transformer(folder, pipeline, options.dtype),
            method=method,
            info=record,
            note="" if pipeline.has_t5 else WITHOUT_T5,
        )

    def weights(self, precision: Precision) -> Frozen:
        dtypes = precision.text_encoder, precision.vae
        return {
            DENOISER: read_transformer(self.folder, self.pipeline, "float32"),
            **read_surroundings(self.folder, self.pipeline, *dtypes),
        }

    def export(
        self, student: SavedModel, out: Path, checks: Sequence[Callable[[Path], None]] = ()
    ) -> None:
        raise NotImplementedError
