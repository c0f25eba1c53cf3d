"""Stable Diffusion 3 and 3.5."""

import sys
from pathlib import Path
from typing import Self

from slam_jax.config.options import Teacher
from slam_jax.config.validate import method_of
from slam_jax.families import sd3_folder as files
from slam_jax.families.pipeline import Params
from slam_jax.families.published_model import PublishedModel
from slam_jax.families.sd3_pipeline import StableDiffusion3Pipeline
from slam_jax.families.stable_diffusion_folder import RECORD_FILE, read_record
from slam_jax.formats.diffusers_folder import Folder
from slam_jax.formats.model_index import CLASSES_3, classes_in
from slam_jax.method.method import Method


class StableDiffusion3(PublishedModel):
    """A teacher in a folder or on the hub."""

    name = files.FAMILY
    denoiser_folder = "transformer"
    few_steps = RECORD_FILE
    pipeline: StableDiffusion3Pipeline

    @classmethod
    def open(
        cls, teacher: Teacher, folder: Path, size: int | None = None, weights: bool = True
    ) -> Self:
        family = super().open(teacher, folder, size, weights)
        if note := cls.note_of(family.folder, family.pipeline):
            print(f"note: {teacher.path}: {note}", file=sys.stderr)
        return family

    @classmethod
    def reads(cls, folder: Path) -> bool:
        return classes_in(folder) is CLASSES_3 or super().reads(folder)

    @classmethod
    def read_pipeline(
        cls, folder: Folder, height: int | None, width: int | None
    ) -> StableDiffusion3Pipeline:
        return files.read_pipeline(folder, height, width)

    @classmethod
    def read_denoiser(
        cls, folder: Folder, pipeline: StableDiffusion3Pipeline, dtype: str
    ) -> Params:
        return files.read_transformer(folder, pipeline, dtype)

    @classmethod
    def is_student(cls, folder: Folder, pipeline: StableDiffusion3Pipeline) -> bool:
        return files.is_student(folder, pipeline)

    @classmethod
    def method_of_student(cls, folder: Folder, pipeline: StableDiffusion3Pipeline) -> Method:
        return method_of(read_record(folder), folder.path / RECORD_FILE)

    @classmethod
    def note_of(cls, folder: Folder, pipeline: StableDiffusion3Pipeline) -> str:
        length = pipeline.tokenizers[0].length
        return "" if pipeline.has_t5 else files.NOTE_ON_T5.format(length)
