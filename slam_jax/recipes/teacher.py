"""The digits teacher: a class-conditional diffusion model, trained once."""

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
from slam_jax.config.options import DigitsTeacher
from slam_jax.config.validate import first_change, to_json
from slam_jax.data import digits
from slam_jax.data.batches import Batches
from slam_jax.families.digits_pipeline import DigitsPipeline
from slam_jax.families.family import teacher_network
from slam_jax.formats.flax_folder import CONFIG_FILE, SavedModel, load_model, save_model
from slam_jax.method.schedule import add_noise
from slam_jax.models import functional
from slam_jax.models.unet import UNet2DConditionModel
from slam_jax.parallel.keys import keys_of
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
    sums_by_bin,
)

TIME_BINS = 4
OPTIONS_FILE = "options.json"


def denoising_loss(pipeline: DigitsPipeline, label_dropout: float) -> Loss:
    """Mean squared error of the output (Ho et al. 2020, eq. 14); some examples lose their label.

    The regression target is eps, v = alpha eps - sigma x_0, or x_0, as the pipeline's prediction
    type says.
    """
    network = teacher_network(pipeline.unet, pipeline.execution)
    schedule = pipeline.schedule

    def draw(key, example):
        t_key, eps_key, drop_key = jax.random.split(jax.random.fold_in(key, example), 3)
        t = jax.random.randint(t_key, (), 0, schedule.num_train_timesteps)
        return (
            t,
            jax.random.normal(eps_key, pipeline.latent_shape),
            jax.random.bernoulli(drop_key, label_dropout),
        )

    def loss(params: Params, ema: Params, frozen: Any, batch: Batch, examples, key):
        del ema, frozen  # the plain denoising loss has no target network and no teacher
        x0 = batch["latents"]
        t, eps, drop = jax.vmap(lambda i: draw(key, i))(examples)
        tokens = jnp.where(drop[:, None], jnp.asarray(digits.NULL_TOKENS)[None, :], batch["tokens"])
        scales = schedule.at(t)
        wanted = {
            "epsilon": lambda: eps,
            "v_prediction": lambda: add_noise(eps, -x0, *scales),
            "sample": lambda: x0,
        }[schedule.prediction_type]()
        output = network(params)(add_noise(x0, eps, *scales), t, pipeline.embed(tokens))
        losses = ((output - wanted) ** 2).mean(axis=(1, 2, 3))
        bins = t * TIME_BINS // schedule.num_train_timesteps
        return losses, sums_by_bin(losses, bins, TIME_BINS, "loss_t")

    return loss


def check_teacher(options: DigitsTeacher, folder: Path) -> None:
    """Makes sure that a teacher in `folder`, finished or not, was begun with these options.

    Raises:
      InputError: it was not.
    """
    record = folder / OPTIONS_FILE
    if not record.exists():
        if folder.exists() and not is_empty(folder):
            raise InputError(f"{folder}: holds no teacher, but is not empty; change teacher.path")
        return
    try:
        begun_with = json.loads(record.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{record}: damaged ({error}); change config.teacher.path") from error
    if change := first_change(begun_with, json.loads(to_json(options)), "config.digits"):
        raise InputError(f"{folder}: made otherwise: {change}; change config.teacher.path")


def train_teacher(
    pipeline: DigitsPipeline, options: DigitsTeacher, folder: Path, mesh: Mesh
) -> SavedModel:
    """The teacher in `folder`: loaded where it is finished, trained (on) where it is not.

    Raises:
      InputError: the folder's teacher was begun with other options, or another run is training it.
      Interrupted: Ctrl-C; run again to go on.
    """
    if as_first((folder / CONFIG_FILE).exists()):
        return load_model(folder)
    with locked(folder) if is_main() else nullcontext():
        if is_main():
            check_teacher(options, folder)
            write_whole(folder / OPTIONS_FILE, to_json(options))
        wait("the teacher is begun")
        return _train(pipeline, options, folder, mesh)


def _train(
    pipeline: DigitsPipeline, options: DigitsTeacher, folder: Path, mesh: Mesh
) -> SavedModel:
    training = options.training
    tx = make_optimizer(training.optimizer, training.steps)
    keys = keys_of(options.seed)
    params = functional.init(UNet2DConditionModel, pipeline.unet, keys.init)
    loss = denoising_loss(pipeline, options.label_dropout)
    step = make_train_step(loss, tx, training, keys.teacher, mesh)
    data = Batches(
        digits.Source(),
        training.batch_size,
        options.seed,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    info = {"teacher": json.loads(to_json(options))}
    record = {"config": info["teacher"], "versions": versions(), "teacher": None}
    init = partial(init_state, tx=tx, mesh=mesh)
    run = TrainingRun(step, init, data, mesh, training, folder, "teacher", record)
    state = fit(run, params, {})
    ema = to_host(state.ema, mesh)
    model = SavedModel(pipeline.unet, ema, pipeline.scheduler, info)
    if is_main():
        save_model(folder, model)
    wait("the teacher is saved")
    return model
