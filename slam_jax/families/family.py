"""A family of models: its files, its data, its export. The interface that training, drawing and
export know; `registry` lists the families.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax

from slam_jax.config.options import Precision, Teacher
from slam_jax.data.batches import Source
from slam_jax.data.options import Data
from slam_jax.data.reference import Reference
from slam_jax.families.pipeline import DENOISER, Frozen, Params, Pipeline
from slam_jax.formats.flax_folder import SavedModel
from slam_jax.method.method import Method


class Family(ABC):
    """A model that was opened: its configuration is read, its weights are where they are.

    Attributes:
      name: of the family.
      trains: whether its teachers can be trained here.
      in_diffusers: whether the stock pipelines of diffusers draw with its students.
      pipeline: the model.
    """

    name: ClassVar[str]
    trains: ClassVar[bool] = False
    in_diffusers: ClassVar[bool] = False
    pipeline: Pipeline

    @classmethod
    @abstractmethod
    def open(
        cls, teacher: Teacher, folder: Path, size: int | None = None, weights: bool = True
    ) -> "Family":
        """The teacher of a run.

        Args:
          teacher: the options.
          folder: where a teacher that is trained here is kept, unless the options say.
          size: height and width of its pictures; None: what it was trained for.
          weights: whether the weights of one on the hub are fetched too.

        Raises:
          InputError: it cannot be found or read, or the options do not fit it; names the key.
        """

    @classmethod
    @abstractmethod
    def reads(cls, folder: Path) -> bool:
        """Whether `load` reads a folder; of a repository on the hub, a folder with what it has
        beside weights."""

    @classmethod
    @abstractmethod
    def load(cls, name: str, options: "LoadOptions") -> "Model":
        """A student or teacher with its weights.

        Raises:
          InputError: it cannot be found or read; names the file.
        """

    @abstractmethod
    def weights(self, precision: Precision) -> Frozen:
        """The teacher (DENOISER, float32) and what surrounds it, as numpy arrays.

        Raises:
          InputError: a file is missing, damaged or of another model.
        """

    def denoiser(self) -> Params:
        """The teacher's denoiser alone, float32, as numpy arrays.

        Raises:
          InputError: a file is missing, damaged or of another model.
        """
        return self.weights(Precision())[DENOISER]

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Which model it is, in JSON, for records; "fingerprints" has one of each of its parts.

        Raises:
          InputError: a file is missing or cannot be read.
        """

    @abstractmethod
    def source(self, data: Data) -> Source:
        """The examples to train on.

        Raises:
          InputError: there is no such source, or the family cannot be trained on it.
        """

    @abstractmethod
    def batch_shapes(self, data: Data | None, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch of `size` examples; nothing is read but what describes the data.

        Args:
          data: which; None: what slam-jax prepare makes, where the family has such.
        """

    @classmethod
    def reference(cls) -> Reference | None:
        """Real pictures to compare drawn ones with; None: none that come with the family."""
        return None

    @abstractmethod
    def export(
        self, student: SavedModel, out: Path, checks: Sequence[Callable[[Path], None]] = ()
    ) -> None:
        """Writes a student of this teacher, whole or not at all; replaces an earlier export.

        Of a student without weights its LoRA is written, where the family is in diffusers.

        Args:
          student: its info has "method".
          out: the folder to make.
          checks: called with the finished folder before that becomes `out`, which an exception
            prevents.

        Raises:
          InputError: `out` holds something else than an export, or cannot be written.
        """


def other_part(began_with: dict[str, Any], found: dict[str, Any]) -> str | None:
    """The first part in which two teachers differ, by their `Family.identity`; None if in none."""
    recorded = began_with.get("fingerprints", {})
    parts = found["fingerprints"].items()
    return next((name for name, value in parts if recorded.get(name) != value), None)


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
      revision: commit, tag or branch of a repository on the hub.
      variant: such as "fp16", of weight files.
      height, width: of the pictures, in pixels; None: the size that the model was trained on.
      dtype: of the denoiser's and the text encoders' weights; the VAE's are float32.
      loras: merged into the weights; each a file, a folder or a repository of the hub, and perhaps
        ":weight".
      allow_unused: whether keys in their files that are of no layer are passed over.
      method: the name of the method by which the model draws with a LoRA for few steps that has no
        record; "": a LoRA without a record changes nothing of how it draws.
    """

    revision: str = ""
    variant: str = ""
    height: int | None = None
    width: int | None = None
    dtype: str = "float32"
    loras: tuple[str, ...] = ()
    allow_unused: bool = False
    method: str = ""


@dataclass(frozen=True)
class Model:
    """A student or a teacher with everything that drawing needs.

    Attributes:
      pipeline: the model; its network is that of `params`.
      frozen: the weights around the denoiser.
      params: the denoiser's weights.
      method: how a student was distilled, which says how it draws; None: a teacher.
      info: how a student was made, empty for others.
      note: what a user should know before drawing.
      reference: real pictures to compare drawn ones with, where the family has such.
      loras: those in the weights, in JSON: the "file", its "sha256" and its "weight".
    """

    pipeline: Pipeline
    frozen: Frozen
    params: Params
    method: Method | None
    info: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    reference: Reference | None = None
    loras: tuple[dict[str, Any], ...] = ()

    @property
    def is_student(self) -> bool:
        """Whether it draws in few steps, without guidance."""
        return self.method is not None
