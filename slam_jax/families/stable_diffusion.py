"""Stable Diffusion 1.x, 2.x and SDXL: a diffusers folder in, a diffusers folder out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slam_jax.base.errors import InputError, prefixed
from slam_jax.base.files import write_whole
from slam_jax.base.json_file import write_json
from slam_jax.base.out_folder import whole_folder
from slam_jax.config.options import Precision, Teacher
from slam_jax.config.validate import method_of
from slam_jax.data.batches import Source
from slam_jax.data.options import Data
from slam_jax.data.prepared import Prepared, check_fits, read_info
from slam_jax.data.sources import kind_of, open_source
from slam_jax.families.family import Family, LoadOptions, Model
from slam_jax.families.pipeline import DENOISER, Frozen, Params
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
from slam_jax.families.stable_diffusion_lora import base_of, is_lora, with_loras
from slam_jax.families.stable_diffusion_pipeline import StableDiffusionPipeline
from slam_jax.formats import lora_file
from slam_jax.formats.diffusers_folder import (
    CLASSES_XL,
    Folder,
    fingerprints,
    read_model_index,
    resolve,
)
from slam_jax.formats.diffusers_write import (
    copy_surroundings,
    model_index,
    student_scheduler,
    write_network,
)
from slam_jax.formats.flax_folder import SavedModel, save_model
from slam_jax.formats.model_card import LORA_USAGE, WHOLE_USAGE, Card
from slam_jax.formats.tokenizer import tokenize
from slam_jax.models.unet import UNetConfig

# All that an export has at its top.
EXPORTED = {*CLASSES_XL, "scheduler", "flax", "model_index.json", "README.md", RECORD_FILE}
EXPORTED |= {lora_file.FILE}


class StableDiffusion(Family):
    """A teacher in a folder or on the hub."""

    name = "stable_diffusion"
    in_diffusers = True
    pipeline: StableDiffusionPipeline

    def __init__(self, pipeline: StableDiffusionPipeline, folder: Folder):
        self.pipeline, self.folder = pipeline, folder

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
        names = ("model_index.json", RECORD_FILE)  # a LoRA has a record alone
        return any((folder / name).exists() for name in names) or not folder.exists()

    @classmethod
    def load(cls, name: str, options: LoadOptions) -> Model:
        folder = resolve(name, options.revision, options.variant)
        if is_lora(folder):
            return replace(_load(*base_of(folder, options)), info=read_record(folder))
        return _load(folder, options)

    def weights(self, precision: Precision) -> Frozen:
        dtypes = precision.text_encoder, precision.vae
        around = read_surroundings(self.folder, self.pipeline, *dtypes)
        return {DENOISER: self.denoiser(), **around}

    def denoiser(self) -> Params:
        return read_unet(self.folder, self.pipeline, "float32")

    def identity(self) -> dict[str, Any]:
        return {
            "path": self.folder.name,
            "revision": self.folder.revision,
            "variant": self.folder.variant,
            "fingerprints": fingerprints(self.folder),
        }

    def source(self, data: Data) -> Source:
        with prefixed("config.data: "):
            # Not with the pipeline itself: where workers read, its arrays would start a backend.
            source = open_source(data, partial(tokenize, self.pipeline.tokenizers))
            if isinstance(source, Prepared):
                prints = self.identity()["fingerprints"]
                path, name = Path(data.source), self.folder.name
                check_fits(path, source.info, name, prints, data.resolution)
        return source

    def batch_shapes(self, data: Data | None, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        with prefixed("config.data.source = "):
            kind = None if data is None else kind_of(data.source)
        if kind in (None, "prepared", "teacher"):
            fields = self.pipeline.prepared_fields(1, 1, False, "float16")
            if data is not None and kind == "prepared":
                fields = read_info(Path(data.source).expanduser())["fields"]
            return {
                name: jax.ShapeDtypeStruct((size, *field["shape"][1:]), jnp.dtype(field["dtype"]))
                for name, field in fields.items()
                if name != "caption_count"
            }
        images = np.zeros((1, *self.pipeline.image_size, 3), np.uint8)
        arrays = {"images": images, **self.pipeline.prompts([""])}
        return {
            name: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype)
            for name, array in arrays.items()
        }

    def export(
        self, student: SavedModel, out: Path, checks: Sequence[Callable[[Path], None]] = ()
    ) -> None:
        if self.folder.path.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{out}: the teacher is in it; choose another folder for the student")
        method, whole = method_of(student.info, out), bool(student.params)
        scheduler = student_scheduler(student.scheduler, method.diffusers_scheduler())
        index = model_index(read_model_index(self.folder), scheduler["_class_name"])
        usage = (WHOLE_USAGE if whole else LORA_USAGE).format(steps=method.usual_steps)
        record = {"usage": usage, "gamma": 1.0, "teacher": self.identity(), **student.info}
        if not whole:
            record["image_size"] = list(self.pipeline.image_size)
        with whole_folder(out, _is_export, "export") as folder:
            write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
            if whole:
                self._write_whole(folder, student, index)
            if student.lora is not None:
                lora_file.write_lora(folder / lora_file.FILE, student.lora, student.lora_keys)
            card = Card(self.folder.name, index["_class_name"], method, student.lora_keys)
            card = self._card(student, card)
            write_whole(folder / "README.md", card.rstrip())
            write_json(folder / RECORD_FILE, record)
            for check in checks:
                check(folder)

    def _write_whole(self, folder: Path, student: SavedModel, index: dict[str, Any]) -> None:
        """Writes what a whole model has beside its scheduler."""
        write_json(folder / "model_index.json", index)
        unet = UNetConfig.from_dict(student.network)
        write_network(folder / "unet", "unet", unet, student.params)
        copy_surroundings(self.folder, index, folder)
        save_model(folder / "flax", student)

    def _card(self, student: SavedModel, card: Card) -> str:
        """The model card of an export."""
        if not student.params:
            assert student.lora is not None  # a student is one or the other, or both
            return card.alone(student.lora, self.pipeline.image_size)
        text = card.whole(UNetConfig.from_dict(student.network))
        if student.lora is None:
            return text
        return text + card.beside(student.lora, student.info.get("lora_keeps"))


def _load(folder: Folder, options: LoadOptions) -> Model:
    """A student or teacher that has all its weights, and LoRAs on it."""
    if options.method and not options.loras:
        raise InputError(f"--method {options.method}: is for a model with a LoRA; there is none")
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


def _is_export(names: set[str]) -> bool:
    """Whether these are the files of an earlier export."""
    return RECORD_FILE in names and names <= EXPORTED
