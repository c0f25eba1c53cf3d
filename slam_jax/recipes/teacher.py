"""Training of a teacher by the plain denoising loss, for any family that is trained here."""

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from slam_jax.base.errors import InputError
from slam_jax.base.files import is_empty, locked, write_whole
from slam_jax.base.json_file import read_json
from slam_jax.config.options import Teacher
from slam_jax.config.validate import first_change, to_json
from slam_jax.data.batches import Batches, Source
from slam_jax.families.family import Family
from slam_jax.families.pipeline import Pipeline, teacher_network
from slam_jax.formats.flax_folder import CONFIG_FILE, SavedModel, save_model
from slam_jax.method.method import sums_by_bin
from slam_jax.method.schedule import add_noise, per_example
from slam_jax.parallel.keys import ENCODE, keys_of
from slam_jax.parallel.processes import as_first, is_main, wait
from slam_jax.parallel.runtime import versions
from slam_jax.parallel.sharding import to_host
from slam_jax.training.loop import TrainingRun, fit
from slam_jax.training.step import (
    Batch,
    Loss,
    Params,
    init_state,
    make_optimizer,
    make_train_step,
)

TIME_BINS = 4
OPTIONS_FILE = "options.json"


def denoising_loss(pipeline: Pipeline, dropout: float) -> Loss:
    """Mean squared error of the output (Ho et al. 2020, eq. 14); some examples lose their prompt.

    The regression target is what the schedule says: eps, v = alpha eps - sigma x_0, or x_0.

    Args:
      pipeline: the model.
      dropout: share of the examples that are shown with the empty prompt.
    """
    network, schedule = teacher_network(pipeline), pipeline.schedule

    def draw(key, example):
        t_key, eps_key, drop_key = jax.random.split(jax.random.fold_in(key, example), 3)
        return (
            jax.random.randint(t_key, (), 0, schedule.num_train_timesteps),
            jax.random.normal(eps_key, pipeline.latent_shape),
            jax.random.bernoulli(drop_key, dropout),
        )

    def loss(params: Params, ema: Params, frozen: Any, batch: Batch, examples, key):
        del ema  # the plain denoising loss has no target network
        x0 = pipeline.latents(frozen, batch, jax.random.fold_in(key, ENCODE), examples)
        t, eps, drop = jax.vmap(lambda i: draw(key, i))(examples)
        contexts = pipeline.contexts(frozen, batch, w=1)
        context = jax.tree.map(lambda c, n: jnp.where(per_example(drop, c), n, c), *contexts)
        x = add_noise(x0, eps, *schedule.at(t))
        wanted = schedule.training_target(x0, eps, t)
        output = network(params)(x, t, context)
        losses = ((output - wanted) ** 2).mean(axis=tuple(range(1, output.ndim)))
        bins = t * TIME_BINS // schedule.num_train_timesteps
        return losses, sums_by_bin(losses, bins, TIME_BINS, "loss_t")

    return loss


def check_teacher(options: Teacher, folder: Path) -> None:
    """Makes sure that a teacher in `folder`, finished or not, was begun with these options.

    Raises:
      InputError: it was not.
    """
    record = folder / OPTIONS_FILE
    if not record.exists():
        if folder.exists() and not is_empty(folder):
            raise InputError(f"{folder}: holds no teacher, but is not empty; change teacher.path")
        return
    begun_with = read_json(record, "change config.teacher.path")
    if change := first_change(begun_with, options, "config.teacher"):
        raise InputError(f"{folder}: made otherwise: {change}; change config.teacher.path")


def train_teacher(
    family: Family, options: Teacher, source: Source, folder: Path, mesh: Mesh
) -> None:
    """Trains the teacher in `folder`, or goes on with it, unless it is finished.

    Args:
      family: the teacher, opened.
      options: how it is trained.
      source: examples.
      folder: where it is kept.
      mesh: devices.

    Raises:
      InputError: the folder's teacher was begun with other options, or another run is training it.
      Interrupted: Ctrl-C; run again to go on.
    """
    if as_first((folder / CONFIG_FILE).exists()):
        return
    with locked(folder) if is_main() else nullcontext():
        if is_main():
            check_teacher(options, folder)
            write_whole(folder / OPTIONS_FILE, to_json(options))
        wait("the teacher is begun")
        _train(family, options, source, folder, mesh)


def _train(family: Family, options: Teacher, source: Source, folder: Path, mesh: Mesh) -> None:
    training, pipeline = options.training, family.pipeline
    tx, keys = make_optimizer(training.optimizer, training.steps), keys_of(options.seed)
    params = pipeline.init(pipeline.network, keys.init)
    loss = denoising_loss(pipeline, options.dropout)
    step = make_train_step(loss, tx, training, keys.teacher, mesh)
    share = jax.process_index(), jax.process_count()
    data = Batches(source, training.batch_size, options.seed, share=share)
    info = {"teacher": json.loads(to_json(options))}
    record = {"config": info["teacher"], "versions": versions(), "teacher": None}
    init = partial(init_state, tx=tx, mesh=mesh)
    run = TrainingRun(step, init, data, mesh, training, folder, "teacher", record)
    state = fit(run, params, {})
    ema = to_host(state.ema, mesh)
    network = pipeline.network.to_dict()
    if is_main():
        save_model(folder, SavedModel(family.name, network, ema, pipeline.scheduler, info))
    wait("the teacher is saved")
