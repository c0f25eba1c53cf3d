"""Distillation: a method's loss bound to a teacher, and the training of the student."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from slam_jax.base.errors import options_of
from slam_jax.config.options import Config, Precision, StudentOptions
from slam_jax.data.batches import Batches, Source
from slam_jax.families.pipeline import (
    DENOISER,
    Frozen,
    Params,
    Pipeline,
    student_config,
    student_network,
    student_params,
    student_weights,
    teacher_network,
)
from slam_jax.method.method import Examples, Method, Networks
from slam_jax.models import lora
from slam_jax.models.functional import cast
from slam_jax.parallel.keys import ENCODE, keys_of
from slam_jax.parallel.runtime import versions
from slam_jax.parallel.sharding import to_host
from slam_jax.training.loop import TrainingRun, fit
from slam_jax.training.step import (
    Batch,
    Init,
    Loss,
    Step,
    init_state,
    make_optimizer,
    make_train_step,
)
from slam_jax.training.wandb_log import Wandb


def distillation_loss(
    pipeline: Pipeline,
    method: Method,
    remat: str = "none",
    options: StudentOptions = StudentOptions(),
    precision: Precision = Precision(),
) -> Loss:
    """The method's loss of each example of a batch, and its metrics.

    Args:
      pipeline: the teacher and what surrounds it.
      method: what the loss is.
      remat: what the student's gradient computes again, a name in `models.remat`.
      options: what of the student is trained.
      precision: of a LoRA, which comes with float32 weights of the teacher; otherwise weights come
        in the dtypes that they compute in, and constants as they are.
    """
    network, teacher = student_config(pipeline, method), teacher_network(pipeline)
    student, target = (student_network(pipeline, network, r) for r in (remat, "none"))

    def loss(params: Params, ema: Params, frozen: Frozen, batch: Batch, index, key):
        latents = pipeline.latents(frozen, batch, jax.random.fold_in(key, ENCODE), index)
        contexts = pipeline.contexts(frozen, batch, method.w)
        weights = frozen[DENOISER]
        whole = partial(student_weights, pipeline, options, weights)
        if options.kind == "full":
            networks = Networks(
                lambda params: student(whole(params)),
                lambda params: target(whole(params)),
                teacher(weights),
                pipeline.schedule,
            )
        else:
            networks = Networks(
                lambda params: student(cast(whole(params), precision.student)),
                lambda params: target(cast(whole(params), precision.target)),
                teacher(cast(weights, precision.teacher)),
                pipeline.schedule,
            )
        return method.loss(params, ema, networks, Examples(latents, *contexts, index), key)

    return loss


def loss_of_run(config: Config, pipeline: Pipeline) -> Loss:
    """The loss of a run."""
    options = config.training.remat, config.student, config.precision
    return distillation_loss(pipeline, config.method, *options)


def trained_shapes(pipeline: Pipeline, config: Config) -> Params:
    """Shapes of all trained weights.

    Raises:
      InputError: a LoRA that does not fit the network; names the option.
    """
    teacher, options = pipeline.abstract_params(pipeline.network), config.student
    if options.kind == "lora":
        with options_of("config.student"):
            adapters = lora.abstract_adapters(teacher, options.rank, options.targets)
        return jax.eval_shape(config.method.init, adapters)
    return jax.eval_shape(partial(trained_params, pipeline, config), teacher)


def trained_params(pipeline: Pipeline, config: Config, teacher: Params) -> Params:
    """All trained weights before the first step, from the teacher's."""
    method = config.method
    own = student_params(pipeline, method, teacher, config.student, config.seed)
    return method.init(own)


def trained_dtypes(config: Config) -> tuple[str, str]:
    """In which the loss gets the trained weights and their average; a LoRA is cast later."""
    if config.student.kind == "lora":
        return "float32", "float32"
    return config.precision.student, config.precision.target


def teacher_dtype(config: Config) -> str:
    """In which the teacher's weights are kept; a LoRA is added to them in float32."""
    return "float32" if config.student.kind == "lora" else config.precision.teacher


def student_step(config: Config, pipeline: Pipeline, mesh: Mesh) -> tuple[Step, Init]:
    """The training step of a student, and what makes the state before the first one.

    Args:
      config: the run.
      pipeline: the teacher and what surrounds it.
      mesh: devices.
    """
    training = config.training
    tx = config.method.optimizer(make_optimizer(training.optimizer, training.steps))
    step = make_train_step(
        loss_of_run(config, pipeline),
        tx,
        training,
        keys_of(config.seed).student,
        mesh,
        trained_dtypes(config),
    )
    return step, partial(init_state, tx=tx, mesh=mesh)


@dataclasses.dataclass(frozen=True)
class Distillation:
    """All that a distillation is made of.

    Attributes:
      config: the run.
      pipeline: the teacher and what surrounds it.
      params: all trained weights before the first step, in the host's memory.
      frozen: the weights of the teacher and of the networks around it, on the mesh.
      teacher: fingerprints of the teacher's parts.
      source: examples.
      mesh: devices.
    """

    config: Config
    pipeline: Pipeline
    params: Params
    frozen: Frozen
    teacher: dict[str, str]
    source: Source
    mesh: Mesh


def distil(
    run: Distillation,
    workdir: Path,
    draw_samples: Callable[[Params, int], dict[str, float]],
    report: Callable[[], None] | None = None,
) -> Params:
    """Trains the student, from the newest checkpoint of the workdir where there is one.

    Args:
      run: what is trained.
      workdir: for checkpoints and metrics.
      draw_samples: called with (the EMA of what is trained of the student, step) every
        `config.training.sample_every` steps; what it returns joins the metrics.
      report: called when these have been logged.

    Returns:
      The EMA of what is trained of the student, in the host's memory.

    Raises:
      InputError: the checkpoint is of another model.
      Interrupted: Ctrl-C; the state is saved.
    """
    config, training, method = run.config, run.config.training, run.config.method
    step, init = student_step(config, run.pipeline, run.mesh)
    share = jax.process_index(), jax.process_count()
    data = Batches(
        run.source,
        training.batch_size,
        config.seed,
        config.data.workers,
        config.data.max_rejects,
        share,
    )
    options = dataclasses.asdict(config)
    what = TrainingRun(
        step,
        init,
        data,
        run.mesh,
        training,
        workdir,
        "student",
        {"config": options, "versions": versions(), "teacher": run.teacher},
        lambda state, number: draw_samples(method.student_of(state.ema), number),
        report,
        Wandb(config.wandb_project, config.name, options),
    )
    state = fit(what, run.params, run.frozen)
    return to_host(method.student_of(state.ema), run.mesh)


def info_of(config: Config) -> dict[str, Any]:
    """How a student of the run is made, for its record; all but the teacher."""
    parts = ("method", "student", "training", "data", "precision", "execution")
    return {
        **{name: dataclasses.asdict(getattr(config, name)) for name in parts},
        "versions": versions(),
    }
