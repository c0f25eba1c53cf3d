"""Training of a teacher by the plain denoising loss, whatever its family.

The trained weights are a dict of parts: that of the denoiser (`DENOISER`) and those of the networks
around it that are trained with it, such as a text encoder; all others are frozen.
"""

import json
from contextlib import nullcontext
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
from slam_jax.data.batches import Source
from slam_jax.families.family import Family
from slam_jax.families.pipeline import DENOISER, Pipeline, teacher_network, with_constants
from slam_jax.formats.flax_folder import CONFIG_FILE, SavedModel, save_model
from slam_jax.method.method import sums_by_bin
from slam_jax.method.schedule import add_noise, per_example
from slam_jax.parallel.keys import ENCODE, keys_of
from slam_jax.parallel.processes import as_first, is_main, wait
from slam_jax.recipes.plain import PlainTraining
from slam_jax.training.step import Batch, Loss, Params

TIME_BINS = 4
OPTIONS_FILE = "options.json"


def denoising_loss(pipeline: Pipeline, dropout: float) -> Loss:
    """Mean squared error of the output (Ho et al. 2020, eq. 14); some examples lose their prompt.

    The regression target is what the schedule says: eps, v = alpha eps - sigma x_0, x_0,
    or the velocity eps - x_0.

    Args:
      pipeline: the model.
      dropout: share of the examples that are shown with the empty prompt.

    Returns:
      The loss; a denoiser's constants are among its frozen arrays.
    """
    network, schedule = teacher_network(pipeline), pipeline.schedule

    def draw(key, example):
        t_key, eps_key, drop_key = jax.random.split(jax.random.fold_in(key, example), 3)
        return (
            schedule.training_time(t_key),
            jax.random.normal(eps_key, pipeline.latent_shape),
            jax.random.bernoulli(drop_key, dropout),
        )

    def loss(params: Params, ema: Params, frozen: Any, batch: Batch, examples, key):
        del ema  # the plain denoising loss has no target network
        parts = {**frozen, **params}
        x0 = pipeline.latents(parts, batch, jax.random.fold_in(key, ENCODE), examples)
        t, eps, drop = jax.vmap(lambda i: draw(key, i))(examples)
        contexts = pipeline.contexts(parts, batch, w=1)
        context = jax.tree.map(lambda c, n: jnp.where(per_example(drop, c), n, c), *contexts)
        x = add_noise(x0, eps, *schedule.at(t))
        wanted = schedule.training_target(x0, eps, t)
        denoiser = with_constants(pipeline, params[DENOISER], frozen.get(DENOISER, {}))
        output = network(denoiser)(x, t, context)
        losses = ((output - wanted) ** 2).mean(axis=tuple(range(1, output.ndim)))
        bins = (t * TIME_BINS // schedule.num_train_timesteps).astype(int)
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
    pipeline, record = family.pipeline, json.loads(to_json(options))
    loss = denoising_loss(pipeline, options.dropout)
    training = PlainTraining(
        loss, source, options.training, options.seed, 0, folder, "teacher", record
    )
    params = {DENOISER: pipeline.init(pipeline.network, keys_of(options.seed).init)}
    ema = training.train(params, {}, mesh)[DENOISER]
    network, info = pipeline.network.to_dict(), {"teacher": record}
    if is_main():
        save_model(folder, SavedModel(family.name, network, ema, pipeline.scheduler, info))
    wait("the teacher is saved")
