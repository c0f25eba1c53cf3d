"""Stable Diffusion 1.x, 2.x and SDXL: a diffusers folder in, a diffusers folder out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from slam_jax.base.errors import InputError, prefixed
from slam_jax.base.json_file import write_json
from slam_jax.base.out_folder import whole_folder
from slam_jax.config.options import Precision, Teacher
from slam_jax.config.validate import method_of
from slam_jax.families.family import LoadOptions, Model
from slam_jax.families.pipeline import DENOISER, Frozen
from slam_jax.families.published_model import PublishedModel
from slam_jax.families.stable_diffusion_folder import (
    FEW_STEPS,
    RECORD_FILE,
    is_student,
    method_of_student,
    read_pipeline,
    read_record,
    read_surroundings,
    read_unet,
)
from slam_jax.families.stable_diffusion_lora import with_loras
from slam_jax.families.stable_diffusion_pipeline import StableDiffusionPipeline
from slam_jax.formats import lora_file
from slam_jax.formats.diffusers_folder import (
    read_model_index,
    resolve,
)
from slam_jax.formats.diffusers_write import (
    USAGE,
    copy_surroundings,
    model_index,
    student_scheduler,
    write_card,
    write_network,
)
from slam_jax.formats.flax_folder import SavedModel, save_model
from slam_jax.formats.model_index import COMPONENTS
from slam_jax.models.unet import UNetConfig

# All that an export has at its top.
EXPORTED = {*COMPONENTS, "scheduler", "flax", "model_index.json", "README.md", RECORD_FILE}
EXPORTED |= {lora_file.FILE}


class StableDiffusion(PublishedModel):
    """A teacher in a folder or on the hub."""

    name = "stable_diffusion"
    pipeline: StableDiffusionPipeline

    @classmethod
    def open(
        cls, teacher: Teacher, folder: Path, size: int | None = None, weights: bool = True
    ) -> "StableDiffusion":
        with prefixed("config.teacher.path = "):
            found = resolve(teacher.path, teacher.revision, teacher.variant, weights)
        pipeline = read_pipeline(found, size, size)
        # Whoever draws with a student of it draws at the size that it is trained at.
        network = replace(pipeline.network, sample_size=pipeline.latent_shape[0])
        pipeline = replace(pipeline, network=network)
        if is_student(found, pipeline):
            raise InputError(
                f"config.teacher.path = {teacher.path!r}: a few-step student ({RECORD_FILE}, "
                f"time_cond_proj_dim or {' or '.join(FEW_STEPS)}); give the model that it was "
                "distilled from, or another teacher"
            )
        return cls(pipeline, found)

    @classmethod
    def reads(cls, folder: Path) -> bool:
        return (folder / "model_index.json").exists()

    @classmethod
    def load(cls, name: str, options: LoadOptions) -> Model:
        folder = resolve(name, options.revision, options.variant)
        pipeline = read_pipeline(folder, options.height, options.width)
        method, record, note = None, read_record(folder), ""
        # A LoRA is added in float32: bfloat16 would lose its smaller changes.
        dtype = "float32" if options.loras else options.dtype
        if is_student(folder, pipeline):
            method = method_of_student(folder, pipeline)
        if "LatentConsistency" in read_model_index(folder)["_class_name"] and not record:
            note = "to an LCM whose guidance is an input, a student's gamma = 1 means none"
        model = Model(
            pipeline=pipeline,
            frozen=read_surroundings(folder, pipeline, dtype, "float32"),
            params=read_unet(folder, pipeline, dtype),
            method=method,
            info=record,
            note=note,
        )
        return with_loras(model, options) if options.loras else model

    def weights(self, precision: Precision) -> Frozen:
        dtypes = precision.text_encoder, precision.vae
        return {
            DENOISER: read_unet(self.folder, self.pipeline, "float32"),
            **read_surroundings(self.folder, self.pipeline, *dtypes),
        }

    def export(
        self, student: SavedModel, out: Path, checks: Sequence[Callable[[Path], None]] = ()
    ) -> None:
        if self.folder.path.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{out}: the teacher is in it; choose another folder for the student")
        method, unet = method_of(student.info, out), UNetConfig.from_dict(student.network)
        scheduler = student_scheduler(student.scheduler, method.diffusers_scheduler())
        index = model_index(read_model_index(self.folder), scheduler["_class_name"])
        usage = USAGE.format(steps=method.usual_steps)
        record = {"usage": usage, "gamma": 1.0, "teacher": self.identity(), **student.info}
        with whole_folder(out, _is_export, "export") as folder:
            write_json(folder / "model_index.json", index)
            write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
            write_network(folder / "unet", "unet", unet, student.params)
            if student.lora is not None:
                lora_file.write_lora(folder / lora_file.FILE, student.lora)
            copy_surroundings(self.folder, index, folder)
            save_model(folder / "flax", student)
            card = self.folder.name, index["_class_name"], method
            kept = student.info.get("lora_keeps")
            write_card(folder / "README.md", *card, unet, student.lora, kept)
            write_json(folder / RECORD_FILE, record)
            for check in checks:
                check(folder)


def _is_export(names: set[str]) -> bool:
    """Whether these are the files of an earlier export."""
    return RECORD_FILE in names and names <= EXPORTED
