"""Families whose models are published as folders of diffusers: a folder in, a folder out."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from slam_jax.base.errors import InputError, prefixed
from slam_jax.base.files import write_whole
from slam_jax.base.json_file import read_json, write_json
from slam_jax.base.out_folder import whole_folder
from slam_jax.config.options import Precision, Teacher
from slam_jax.config.validate import method_of
from slam_jax.data.batches import Source
from slam_jax.data.options import Data
from slam_jax.data.prepared import Prepared, check_fits, read_info
from slam_jax.data.sources import kind_of, open_source
from slam_jax.families.family import Family, LoadOptions, Model
from slam_jax.families.latent_pipeline import LatentPipeline
from slam_jax.families.pipeline import DENOISER, Frozen, Params
from slam_jax.families.stable_diffusion_folder import RECORD_FILE, read_record, read_surroundings
from slam_jax.families.stable_diffusion_lora import base_of, is_lora, with_loras
from slam_jax.formats import lora_file
from slam_jax.formats.diffusers_folder import Folder, fingerprints, read_model_index, resolve
from slam_jax.formats.diffusers_write import (
    copy_surroundings,
    copy_tokenizers,
    model_index,
    student_scheduler,
    write_model,
    write_network,
)
from slam_jax.formats.flax_folder import SavedModel, save_model
from slam_jax.formats.model_card import Card
from slam_jax.formats.model_index import COMPONENTS, left_out
from slam_jax.method.method import Method

# All that an export has at its top.
EXPORTED = {*COMPONENTS, "scheduler", "flax", "model_index.json", "README.md", RECORD_FILE}
EXPORTED |= {lora_file.FILE}


class PublishedModel(Family):
    """A model in a folder or on the hub.

    Attributes:
      denoiser_folder: where its denoiser is, "unet" or "transformer".
      few_steps: what tells a few-step student from a teacher, in words.
    """

    in_diffusers = True
    denoiser_folder: ClassVar[str]
    few_steps: ClassVar[str]
    pipeline: LatentPipeline

    def __init__(self, pipeline: LatentPipeline, folder: Folder):
        self.pipeline, self.folder = pipeline, folder

    @classmethod
    @abstractmethod
    def read_pipeline(cls, folder: Folder, height: int | None, width: int | None) -> Any:
        """All of a folder but its weights, for pictures of that size.

        Raises:
          InputError: a part is missing, not supported or does not fit; or there are no such
            pictures.
        """

    @classmethod
    @abstractmethod
    def read_denoiser(cls, folder: Folder, pipeline: Any, dtype: str) -> Params:
        """Its denoiser's weights, numpy arrays.

        Raises:
          InputError: a missing, damaged or foreign file.
        """

    @classmethod
    @abstractmethod
    def is_student(cls, folder: Folder, pipeline: Any) -> bool:
        """Whether the model draws in few steps."""

    @classmethod
    @abstractmethod
    def method_of_student(cls, folder: Folder, pipeline: Any) -> Method:
        """How a student was distilled, as far as drawing depends on it.

        Raises:
          InputError: its record or its scheduler say something impossible.
        """

    @classmethod
    def note_of(cls, folder: Folder, pipeline: Any) -> str:
        """What a user should know of a model before drawing."""
        del folder, pipeline
        return ""

    @classmethod
    def open(
        cls, teacher: Teacher, folder: Path, size: int | None = None, weights: bool = True
    ) -> Self:
        with prefixed("config.teacher.path = "):
            found = resolve(teacher.path, teacher.revision, teacher.variant, weights)
        pipeline = cls.read_pipeline(found, size, size)
        # Whoever draws with a student of it draws at the size that it is trained at.
        network = replace(pipeline.network, sample_size=pipeline.latent_shape[0])
        pipeline = replace(pipeline, network=network)
        if cls.is_student(found, pipeline):
            raise InputError(
                f"config.teacher.path = {teacher.path!r}: a few-step student ({cls.few_steps}); "
                "give the model that it was distilled from, or another teacher"
            )
        return cls(pipeline, found)

    @classmethod
    def reads(cls, folder: Path) -> bool:
        record = folder / RECORD_FILE  # all that a LoRA has
        if (folder / "model_index.json").exists() or not record.exists():
            return False
        return read_json(record, "export it again").get("family", "stable_diffusion") == cls.name

    @classmethod
    def load(cls, name: str, options: LoadOptions) -> Model:
        folder = resolve(name, options.revision, options.variant)
        if is_lora(folder):
            return replace(cls._load(*base_of(folder, options)), info=read_record(folder))
        return cls._load(folder, options)

    @classmethod
    def _load(cls, folder: Folder, options: LoadOptions) -> Model:
        """A student or teacher that has all its weights, and LoRAs on it."""
        if options.method and not options.loras:
            raise InputError(
                f"--method {options.method}: is for a model with a LoRA; there is none"
            )
        pipeline = cls.read_pipeline(folder, options.height, options.width)
        # A LoRA is added in float32: bfloat16 would lose its smaller changes.
        dtype = "float32" if options.loras else options.dtype
        method = None
        if cls.is_student(folder, pipeline):
            method = cls.method_of_student(folder, pipeline)
        model = Model(
            pipeline=pipeline,
            frozen=read_surroundings(folder, pipeline, dtype, "float32"),
            params=cls.read_denoiser(folder, pipeline, dtype),
            method=method,
            info=read_record(folder),
            note=cls.note_of(folder, pipeline),
        )
        return with_loras(model, options) if options.loras else model

    def weights(self, precision: Precision) -> Frozen:
        dtypes = precision.text_encoder, precision.vae
        around = read_surroundings(self.folder, self.pipeline, *dtypes)
        return {DENOISER: self.denoiser(), **around}

    def denoiser(self) -> Params:
        return self.read_denoiser(self.folder, self.pipeline, "float32")

    def write(self, weights: Frozen, to: Path, dtype: str) -> None:
        """Writes the whole model with other weights.

        Args:
          weights: of every network, the denoiser's as DENOISER.
          to: the folder to write into.
          dtype: of the weights in the files.

        Raises:
          InputError: the model's own folder cannot be read any more.
        """
        around = self.pipeline.around.items()
        parts = {name: (network, weights[name]) for name, (_, network) in around}
        parts[self.denoiser_folder] = self.pipeline.network, weights[DENOISER]
        index = read_model_index(self.folder)
        write_model(to, index["_class_name"], parts, self.pipeline.scheduler, dtype)
        copy_tokenizers(self.folder, index, to)

    def identity(self) -> dict[str, Any]:
        return {
            "path": self.folder.name,
            "revision": self.folder.revision,
            "variant": self.folder.variant,
            "fingerprints": fingerprints(self.folder),
        }

    def source(self, data: Data) -> Source:
        with prefixed("config.data: "):
            source = open_source(data, partial(self.pipeline.tokens_of, self.pipeline.tokenizers))
            if isinstance(source, Prepared):
                prints = self.identity()["fingerprints"]
                path, name = Path(data.source), self.folder.name
                check_fits(path, source.info, name, prints, data.resolution)
        return source

    def batch_shapes(self, data: Data | None, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        with prefixed("config.data.source = "):
            kind = None if data is None else kind_of(data.source)
        if kind in (None, "prepared", "teacher"):
            embeddings = data is not None and data.teacher_text_embeddings
            fields = self.pipeline.prepared_fields(1, 1, embeddings, "float16")
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
        method, schedule = method_of(student.info, out), self.pipeline.schedule
        whole, lora_keys = bool(student.params), self._lora_keys(student)
        scheduler = student_scheduler(student.scheduler, method.diffusers_scheduler(schedule))
        index = model_index(read_model_index(self.folder), scheduler["_class_name"])
        pipeline, without = index["_class_name"], left_out(self.folder.path / "model_index.json")
        kind = self.denoiser_folder
        card = Card(self.folder.name, pipeline, method, schedule, kind, without, lora_keys)
        record = {"family": self.name, "usage": card.usage(whole), "gamma": 1.0}
        if card.sigmas:
            record["sigmas"] = card.sigmas
        record |= {"teacher": self.identity(), **student.info}
        if not whole:
            record["image_size"] = list(self.pipeline.image_size)
        with whole_folder(out, _is_export, "export") as folder:
            write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
            if whole:
                self._write_whole(folder, student, index)
            if student.lora is not None:
                lora_file.write_lora(folder / lora_file.FILE, student.lora, lora_keys, kind)
            text = self._card(student, card)
            write_whole(folder / "README.md", text.rstrip())
            write_json(folder / RECORD_FILE, record)
            for check in checks:
                check(folder)

    def _lora_keys(self, student: SavedModel) -> str:
        """The layout of its LoRA: the one that is asked for where there is a choice."""
        layouts = lora_file.LAYOUTS[self.denoiser_folder]
        return student.lora_keys if student.lora_keys in layouts else layouts[0]

    def _write_whole(self, folder: Path, student: SavedModel, index: dict[str, Any]) -> None:
        """Writes what a whole model has beside its scheduler."""
        write_json(folder / "model_index.json", index)
        network = type(self.pipeline.network).from_dict(student.network)
        kind = self.denoiser_folder
        write_network(folder / kind, kind, network, student.params)
        copy_surroundings(self.folder, index, folder)
        save_model(folder / "flax", student)

    def _card(self, student: SavedModel, card: Card) -> str:
        """The model card of an export."""
        if not student.params:
            assert student.lora is not None  # a student is one or the other, or both
            return card.alone(student.lora, self.pipeline.image_size)
        if student.lora is None:
            return card.whole()
        return card.whole() + card.beside(student.lora, student.info.get("lora_keeps"))


def _is_export(names: set[str]) -> bool:
    """Whether these are the files of an earlier export."""
    return RECORD_FILE in names and names <= EXPORTED
