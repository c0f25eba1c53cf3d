"""The distillation: the SLAM loss bound to a teacher, and the training of the student."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from slam_jax.config.options import Config
from slam_jax.data.batches import Batches, Source
from slam_jax.families.family import (
    Frozen,
    Pipeline,
    student_config,
    student_network,
    teacher_network,
)
from slam_jax.formats.flax_folder import SavedModel
from slam_jax.method.slam import Method, draw, slam_loss
from slam_jax.method.solver import Denoiser
from slam_jax.parallel.keys import keys_of
from slam_jax.parallel.runtime import versions
from slam_jax.parallel.sharding import to_host
from slam_jax.training.loop import TrainingRun, fit
from slam_jax.training.step import (
    Batch,
    Init,
    Loss,
    Params,
    Step,
    init_state,
    make_optimizer,
    make_train_step,
    sums_by_bin,
)

BINS = 4
ENCODE = 2**32 - 1  # folded into a step's key for the VAE; no example has this index


def distillation_loss(
    pipeline: Pipeline, method: Method, remat: str = "none", teacher_passes: int = 1
) -> Loss:
    """The SLAM loss of each example, and its mean by position in time and on the sub-path.

    Args:
      pipeline: the teacher's surroundings.
      method: what the loss is.
      remat: of the student's gradient, a name in `models.remat`.
      teacher_passes: 2 shows the teacher half of prompts and empty prompts at a time.
    """
    unet, execution = student_config(pipeline.unet, method.conditioning), pipeline.execution
    teacher = teacher_network(pipeline.unet, execution)
    student, target = (student_network(unet, r, execution) for r in (remat, "none"))
    guided = method.w > 0  # else there are no empty prompts
    divide = in_two_passes if guided and teacher_passes == 2 else lambda denoise: denoise

    def loss(params: Params, ema: Params, frozen: Frozen, batch: Batch, examples, key):
        latents = pipeline.latents(frozen, batch, jax.random.fold_in(key, ENCODE), examples)
        context, null_context = pipeline.contexts(frozen, batch, method.w)
        draws = draw(key, examples, pipeline.latent_shape, method)
        losses = slam_loss(
            student(params),
            target(ema),
            divide(teacher(frozen["unet"])),
            pipeline.schedule,
            latents,
            context,
            null_context,
            draws,
            method,
        )
        t_bins = draws.index * BINS // method.num_ddim_timesteps
        gamma_bins = (draws.gamma * BINS).astype(int).clip(0, BINS - 1)
        return losses.mean(axis=1), {
            **sums_by_bin(losses.mean(axis=1), t_bins, BINS, "loss_t"),
            **sums_by_bin(losses.reshape(-1), gamma_bins.reshape(-1), BINS, "loss_gamma"),
        }

    return loss


def in_two_passes(denoise: Denoiser) -> Denoiser:
    """The same function, which computes every other row first and then the rest."""

    def half(start, *arguments):
        return denoise(*jax.tree.map(lambda a: a[start::2], arguments))

    def both(x, t, context):
        halves = half(0, x, t, context), half(1, x, t, context)
        return jnp.stack(halves, axis=1).reshape(x.shape)

    return both


def student_step(config: Config, pipeline: Pipeline, mesh: Mesh) -> tuple[Step, Init]:
    """The training step of a student, and what makes the state before the first one.

    Args:
      config: the run.
      pipeline: the teacher's surroundings.
      mesh: devices.
    """
    training, precision = config.training, config.precision
    tx = make_optimizer(training.optimizer, training.steps)
    step = make_train_step(
        distillation_loss(pipeline, config.method, training.remat, training.teacher_passes),
        tx,
        training,
        keys_of(config.seed).student,
        mesh,
        (precision.student, precision.target),
    )
    return step, partial(init_state, tx=tx, mesh=mesh)


def distill(
    config: Config,
    pipeline: Pipeline,
    student: Params,
    frozen: Frozen,
    teacher: dict[str, str],
    source: Source,
    workdir: Path,
    mesh: Mesh,
    draw_samples: Callable[[Params, int], dict[str, float]],
) -> SavedModel:
    """Trains the student, from the newest checkpoint of the workdir where there is one.

    Args:
      config: the run.
      pipeline: the teacher's surroundings.
      student: its weights before the first step, in the host's memory.
      frozen: the teacher ("unet") and the networks around it, on the mesh.
      teacher: fingerprints of the teacher's parts.
      source: examples.
      workdir: for checkpoints and metrics.
      mesh: devices.
      draw_samples: called with (EMA weights, step) every `config.training.sample_every` steps; what
        it returns joins the metrics.

    Returns:
      The student with its EMA weights; its info lacks the teacher.

    Raises:
      InputError: the checkpoint is of another model.
      Interrupted: Ctrl-C; the state is saved.
    """
    training = config.training
    step, init = student_step(config, pipeline, mesh)
    run = TrainingRun(
        step,
        init,
        Batches(
            source,
            training.batch_size,
            config.seed,
            config.data.workers,
            jax.process_index(),
            jax.process_count(),
            config.data.max_rejects,
        ),
        mesh,
        training,
        workdir,
        "student",
        {"config": dataclasses.asdict(config), "versions": versions(), "teacher": teacher},
        lambda state, number: draw_samples(state.ema, number),
    )
    state = fit(run, student, frozen)
    unet = student_config(pipeline.unet, config.method.conditioning)
    ema = to_host(state.ema, mesh)
    return SavedModel(unet, ema, pipeline.scheduler, info_of(config))


def info_of(config: Config) -> dict[str, Any]:
    """How a student of the run is made, for its record; all but the teacher."""
    parts = ("method", "training", "data", "precision", "execution")
    return {
        **{name: dataclasses.asdict(getattr(config, name)) for name in parts},
        "versions": versions(),
    }
