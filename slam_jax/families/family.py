"""A family of models: its networks, its files, its prompts and data. The interface that training,
drawing and export know; `registry` lists the families.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from slam_jax.base.errors import InputError
from slam_jax.config.options import Precision, Teacher
from slam_jax.data.batches import Source
from slam_jax.data.options import Data
from slam_jax.data.reference import Reference
from slam_jax.formats.flax_folder import SavedModel
from slam_jax.method.consistency import Student
from slam_jax.method.method import Method
from slam_jax.method.schedule import Schedule
from slam_jax.method.solver import Context, Denoiser
from slam_jax.models.execution import Execution

Params = dict[str, Any]
# The weights of every frozen network by the name of its part; that of the teacher is DENOISER.
Frozen = dict[str, Params]
Batch = Mapping[str, Array]
DENOISER = "denoiser"


@dataclass(frozen=True)
class Pipeline(ABC):
    """A model without its weights: the denoiser, of which a student's configuration may be another
    one than the teacher's, and what is frozen around it. What takes `frozen` can be compiled.

    Attributes:
      network: the denoiser's configuration; hashable, with a method `to_dict`.
      scheduler: contents of a diffusers scheduler_config.json.
      schedule: built from it.
      latent_shape: (H, W, C).
      execution: how the networks are computed.
    """

    network: Any
    scheduler: dict[str, Any]
    schedule: Schedule
    latent_shape: tuple[int, int, int]
    execution: Execution = field(default=Execution(), kw_only=True)

    example_prompts: ClassVar[tuple[str, ...]]  # of the step ladder, unless a config has others
    labels: ClassVar[tuple[str, ...]] = ()  # all prompts there are; empty: any text

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of pictures for image-to-image, in pixels; None: there is none."""
        return None

    @abstractmethod
    def abstract_params(self, network: Any) -> Params:
        """The nested dict of a denoiser's weights, as ShapeDtypeStructs."""

    @abstractmethod
    def init(self, network: Any, key: Array) -> Params:
        """Fresh weights, float32."""

    @abstractmethod
    def apply(
        self, network: Any, remat: str = "none"
    ) -> Callable[[Params, Array, Array, Context, Array | None], Array]:
        """(params, x [B, H, W, C], t [B], context, gamma [B] or None) -> output [B, H, W, C].

        Args:
          network: configuration.
          remat: what the backward pass computes again, a name in `models.remat`.
        """

    @abstractmethod
    def gamma_network(self) -> Any:
        """The configuration of the same denoiser with one more input, for gamma."""

    @abstractmethod
    def gamma_params(self, params: Params) -> Params:
        """Weights of `gamma_network` that compute what `params` do, at any gamma; traceable."""

    @abstractmethod
    def latents(
        self, frozen: Frozen, batch: Batch, key: Array, examples: Int[Array, " B"]
    ) -> Float[Array, "B H W C"]:
        """Clean latents of a batch; row i draws what is random with (key, examples[i])."""

    @abstractmethod
    def contexts(self, frozen: Frozen, batch: Batch, w: float) -> tuple[Context, Context | None]:
        """Context of a batch's prompts and, where guidance w needs it, of as many empty ones."""

    @abstractmethod
    def decode(self, frozen: Frozen, latents: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Images in [-1, 1]."""

    @abstractmethod
    def prompts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """A batch of prompts to draw with, in the host's memory; one of its arrays is "tokens"
        [B, ...], token ids.

        Raises:
          InputError: a text is no prompt of this family.
        """

    def cut(self, text: str) -> str:
        """The end of a prompt that is too long to be seen; "" where all is."""
        return ""

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        raise InputError("this family's prompts have no token ids")

    def save_tokenizers(self, folder: Path) -> list[str]:
        """Writes into a folder what turns texts into token ids; the names of its parts."""
        return []

    def shapes_around(self, precision: Precision) -> Frozen:
        """Weights around the denoiser, as ShapeDtypeStructs."""
        return {}


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
        """Whether `load` reads a folder; of a repository on the hub only the name is known."""

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

        Args:
          student: its info has "method".
          out: the folder to make.
          checks: called with the finished folder before that becomes `out`, which an exception
            prevents.

        Raises:
          InputError: `out` holds something else than an export, or cannot be written.
        """


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
      revision: commit, tag or branch of a repository on the hub.
      variant: such as "fp16", of weight files.
      height, width: of the pictures, in pixels; None: the size that the model was trained on.
      dtype: of the denoiser's and the text encoders' weights; the VAE's are float32.
    """

    revision: str = ""
    variant: str = ""
    height: int | None = None
    width: int | None = None
    dtype: str = "float32"


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
    """

    pipeline: Pipeline
    frozen: Frozen
    params: Params
    method: Method | None
    info: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    reference: Reference | None = None

    @property
    def is_student(self) -> bool:
        """Whether it draws in few steps, without guidance."""
        return self.method is not None


def teacher_network(pipeline: Pipeline) -> Callable[[Params], Denoiser]:
    """params -> the teacher as a function of (x, t, context)."""
    apply = pipeline.apply(pipeline.network)
    return lambda params: lambda x, t, context: apply(params, x, t, context, None)


def student_network(
    pipeline: Pipeline, network: Any, remat: str = "none"
) -> Callable[[Params], Student]:
    """params -> a student as a function of (x, t, context, gamma).

    Args:
      network: its configuration.
      remat: what its backward pass computes again, a name in `models.remat`.
    """
    apply = pipeline.apply(network, remat)
    return lambda params: lambda x, t, context, gamma: apply(params, x, t, context, gamma)


def student_config(pipeline: Pipeline, method: Method) -> Any:
    """The configuration of a student: that of the teacher, and gamma where the method tells it."""
    return pipeline.gamma_network() if method.tells_gamma else pipeline.network


def student_params(pipeline: Pipeline, method: Method, teacher: Params) -> Params:
    """A student at step 0, which computes what its teacher does; of the very same arrays."""
    return pipeline.gamma_params(teacher) if method.tells_gamma else teacher
