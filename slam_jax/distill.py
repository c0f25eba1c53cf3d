"""The distillation run: the SLAM loss bound to a teacher, the training loop, and the exported
student."""

import dataclasses
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from slam_jax.config import Config
from slam_jax.data import digits
from slam_jax.data.batches import batches
from slam_jax.keys import keys_of
from slam_jax.loop import fit
from slam_jax.loss import Method, draw, slam_loss
from slam_jax.models.pipeline import (
    Pipeline,
    SavedModel,
    save_model,
    student_config,
    student_network,
    student_params,
    teacher_network,
)
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


def distillation_loss(pipeline: Pipeline, method: Method) -> Loss:
    """The SLAM loss of each example, and its mean by position in time and on the sub-path."""
    teacher = teacher_network(pipeline.unet)
    student = student_network(student_config(pipeline.unet, method.conditioning))

    def loss(params: Params, ema: Params, frozen: Any, batch: Batch, examples, key):
        draws = draw(key, examples, pipeline.latent_shape, method)
        context, null_context = pipeline.contexts(batch["tokens"], method.w)
        losses = slam_loss(
            student(params),
            student(ema),
            teacher(frozen),
            pipeline.schedule,
            batch["latents"],
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
    teacher: SavedModel,
    workdir: Path,
    mesh: Mesh,
    draw_samples: Callable[[Params, int], None],
) -> SavedModel:
    """Trains the student, from the newest checkpoint of the workdir where there is one, and
    exports its EMA weights.

    Args:
      config: the run.
      pipeline: the teacher's surroundings.
      teacher: what is distilled.
      workdir: for checkpoints, metrics and export/.
      mesh: devices.
      draw_samples: called with (EMA weights, step) every `config.training.sample_every` steps.

    Raises:
      InputError: the checkpoint is of another model.
      Interrupted: Ctrl-C; the state is saved.
    """
    training, method = config.training, config.method
    unet = student_config(pipeline.unet, method.conditioning)
    tx = make_optimizer(training.optimizer, training.steps)
    loss = distillation_loss(pipeline, method)
    key = keys_of(config.seed).student
    step = make_train_step(loss, tx, training.ema, key, training.batch_size, mesh)
    state = init_state(student_params(teacher.params, unet), tx, mesh)
    data = batches(digits.Source(), training.batch_size, config.seed)

    state = fit(
        step,
        state,
        teacher.params,
        data,
        mesh,
        training,
        workdir,
        "student",
        lambda state, number: draw_samples(state.ema, number),
    )
    info = {
        "method": dataclasses.asdict(method),
        "training": dataclasses.asdict(training),
        "teacher": teacher.info,
        "versions": {name: version(name) for name in ("jax", "flax", "optax")},
    }
    student = SavedModel(unet, jax.device_get(state.ema), pipeline.scheduler, info)
    save_model(workdir / "export", student)
    return student
