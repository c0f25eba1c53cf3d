"""A teacher's UNet and what is frozen around it, and the student derived from it.

`Pipeline` is what training and sampling know of a model family; `digits_pipeline` and
`sd_pipeline` are the two there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slam_jax.method.schedule import NoiseSchedule, gamma_embedding
from slam_jax.method.slam import Student
from slam_jax.method.solver import Context, Denoiser
from slam_jax.models import functional
from slam_jax.models.execution import Execution
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig

GAMMA_EMBEDDING_DIM = 256

Params = dict[str, Any]
# The weights of every frozen network by the name of its part: "unet" is the teacher.
Frozen = dict[str, Params]
Batch = Mapping[str, Array]


@dataclass(frozen=True)
class Pipeline(ABC):
    """What training and sampling need beside the UNet's weights; methods are jittable.

    Attributes:
      unet: the teacher's configuration.
      scheduler: contents of a diffusers scheduler_config.json.
      schedule: built from it.
      latent_shape: (H, W, C).
      execution: how the networks are computed.
    """

    unet: UNetConfig
    scheduler: dict[str, Any]
    schedule: NoiseSchedule
    latent_shape: tuple[int, int, int]
    execution: Execution = field(default=Execution(), kw_only=True)

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


def teacher_network(
    config: UNetConfig, execution: Execution = Execution()
) -> Callable[[Params], Denoiser]:
    """params -> the teacher as a function of (x, t, context); a context names UNet arguments."""
    apply = functional.apply_fn(UNet2DConditionModel, config, execution=execution)
    return lambda params: lambda x, t, context: apply(params, x, t.astype(jnp.float32), **context)


def student_network(
    config: UNetConfig, remat: str = "none", execution: Execution = Execution()
) -> Callable[[Params], Student]:
    """params -> the student as a function of (x, t, context, gamma).

    Args:
      config: its UNet's.
      remat: what its backward pass computes again, a name in `models.remat`.
      execution: how it is computed.

    Raises:
      ValueError: from the student, for another name.
    """
    apply = functional.apply_fn(UNet2DConditionModel, config, execution=execution)

    def bind(params):
        def student(x, t, context, gamma):
            dim = config.time_cond_proj_dim
            condition = None if dim is None else gamma_embedding(gamma, dim)
            t = t.astype(jnp.float32)
            return apply(params, x, t, **context, timestep_cond=condition, remat=remat)

        return student

    return bind


def student_config(teacher: UNetConfig, conditioning: str) -> UNetConfig:
    """The teacher's config, with a gamma embedding where `conditioning` ("embedding", "snr",
    "both") asks for one."""
    return replace(
        teacher, time_cond_proj_dim=None if conditioning == "snr" else GAMMA_EMBEDDING_DIM
    )


def student_params(teacher_params: Params, config: UNetConfig) -> Params:
    """The student at step 0: the teacher's weights, the very arrays, and zeros for a gamma
    projection."""
    if config.time_cond_proj_dim is None:
        return teacher_params
    shape = (config.time_cond_proj_dim, config.block_out_channels[0])
    projection = {"kernel": jnp.zeros(shape)}
    embedding = {**teacher_params["time_embedding"], "cond_proj": projection}
    return {**teacher_params, "time_embedding": embedding}
