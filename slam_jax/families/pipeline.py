"""A model without its weights, as pure functions: the interface that a family implements."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, Int

from slam_jax.base.errors import InputError, options_of
from slam_jax.config.options import Precision, StudentOptions
from slam_jax.method.consistency import Student
from slam_jax.method.method import Method
from slam_jax.method.schedule import Schedule
from slam_jax.method.solver import Context, Denoiser
from slam_jax.models import lora
from slam_jax.models.execution import Execution
from slam_jax.models.functional import cast, flatten, unflatten

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

    # Dotted paths of the arrays among a denoiser's that are no weights, and are never trained.
    constants: ClassVar[tuple[str, ...]] = ()

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

    def shapes_around(self, precision: Precision, embedded: bool = False) -> Frozen:
        """Weights around the denoiser, as ShapeDtypeStructs.

        Args:
          precision: of the networks.
          embedded: whether batches have the prompts' embeddings, which need no text encoder.
        """
        del precision, embedded
        return {}


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


def student_params(
    pipeline: Pipeline,
    method: Method,
    teacher: Params,
    options: StudentOptions = StudentOptions(),
    seed: int = 0,
) -> Params:
    """What is trained of a student, at step 0, where it computes what its teacher does: all its
    weights, which are the very same arrays, without constants; or a LoRA that is drawn with a seed.

    Raises:
      InputError: the LoRA does not fit the network; names the option.
    """
    if options.kind == "lora":
        with options_of("config.student"):
            return lora.init(teacher, options.rank, options.targets, seed)
    whole = pipeline.gamma_params(teacher) if method.tells_gamma else teacher
    return without_constants(pipeline, whole)


def without_constants(pipeline: Pipeline, params: Params) -> Params:
    """Those of a denoiser's arrays that are weights."""
    arrays = flatten(params)
    return unflatten({path: a for path, a in arrays.items() if path not in pipeline.constants})


def with_constants(pipeline: Pipeline, weights: Params, there: Params) -> Params:
    """A denoiser's weights, and its constants from where they are; traceable."""
    constants = {path: flatten(there)[path] for path in pipeline.constants}
    return unflatten({**flatten(weights), **constants})


def cast_weights(pipeline: Pipeline, params: Params, dtype: str) -> Params:
    """A denoiser's arrays in another dtype; constants stay as they are."""
    arrays = flatten(params)
    return unflatten(
        {path: a if path in pipeline.constants else cast(a, dtype) for path, a in arrays.items()}
    )


def student_weights(
    pipeline: Pipeline, options: StudentOptions, teacher: Params, trained: Params
) -> Params:
    """All weights of a student; traceable.

    Args:
      pipeline: of both.
      options: what of it is trained.
      teacher: the weights of its teacher; those that a LoRA changes in float32, as a change that is
        smaller than the spacing of bfloat16 would be lost.
      trained: the part that is trained.
    """
    if options.kind == "lora":
        return lora.merged(teacher, trained, options.scale)
    return with_constants(pipeline, trained, teacher)
