"""The distillation: the SLAM loss bound to a teacher, and the training of the student."""

import dataclasses
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from slam_jax.config import Config, Precision
from slam_jax.data.batches import Batches, Source
from slam_jax.keys import keys_of
from slam_jax.loop import fit
from slam_jax.loss import Method, draw, slam_loss
from slam_jax.models.functional import cast
from slam_jax.models.pipeline import (
    Frozen,
    Pipeline,
    student_config,
    student_network,
    teacher_network,
)
from slam_jax.models.saved import SavedModel
from slam_jax.train import (
    Batch,
    Loss,
    Params,
    init_state,
    make_optimizer,
    make_train_step,
    mean_by_bin,
)

BINS = 4
ENCODE = 2**32 - 1  # folded into a step's key for the VAE; no example has this index


def distillation_loss(pipeline: Pipeline, method: Method, precision: Precision) -> Loss:
    """The SLAM loss of each example, and its mean by position in time and on the sub-path."""
    teacher = teacher_network(pipeline.unet)
    student = student_network(student_config(pipeline.unet, method.conditioning))

    def loss(params: Params, ema: Params, frozen: Frozen, batch: Batch, examples, key):
        latents = pipeline.latents(frozen, batch, jax.random.fold_in(key, ENCODE), examples)
        context, null_context = pipeline.contexts(frozen, batch, method.w)
        draws = draw(key, examples, pipeline.latent_shape, method)
        losses = slam_loss(
            student(cast(params, precision.student)),
            student(cast(ema, precision.target)),
            teacher(frozen["unet"]),
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
            **mean_by_bin(losses.mean(axis=1), t_bins, BINS, "loss_t"),
            **mean_by_bin(losses.reshape(-1), gamma_bins.reshape(-1), BINS, "loss_gamma"),
        }

    return loss


def distill(
    config: Config,
    pipeline: Pipeline,
    student: Params,
    frozen: Frozen,
    source: Source,
    workdir: Path,
    mesh: Mesh,
    draw_samples: Callable[[Params, int], None],
) -> SavedModel:
    """Trains the student, from the newest checkpoint of the workdir where there is one.

    Args:
      config: the run.
      pipeline: the teacher's surroundings.
      student: its weights before the first step.
      frozen: the teacher ("unet") and the networks around it.
      source: examples.
      workdir: for checkpoints and metrics.
      mesh: devices.
      draw_samples: called with (EMA weights, step) every `config.training.sample_every` steps.

    Returns:
      The student with its EMA weights; its info lacks the teacher.

    Raises:
      InputError: the checkpoint is of another model.
      Interrupted: Ctrl-C; the state is saved.
    """
    training, method, precision = config.training, config.method, config.precision
    unet = student_config(pipeline.unet, method.conditioning)
    tx = make_optimizer(training.optimizer, training.steps)
    loss = distillation_loss(pipeline, method, precision)
    key = keys_of(config.seed).student
    step = make_train_step(loss, tx, training.ema, key, training.batch_size, mesh)
    state = fit(
        step,
        partial(init_state, tx=tx, mesh=mesh),
        student,
        frozen,
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
        lambda state, number: draw_samples(state.ema, number),
    )
    return SavedModel(unet, jax.device_get(state.ema), pipeline.scheduler, info_of(config))


def info_of(config: Config) -> dict[str, Any]:
    """How a student of the run is made, for its record; all but the teacher."""
    parts = {name: getattr(config, name) for name in ("method", "training", "data", "precision")}
    return {
        **{name: dataclasses.asdict(options) for name, options in parts.items()},
        "versions": {name: version(name) for name in ("jax", "flax", "optax")},
    }
