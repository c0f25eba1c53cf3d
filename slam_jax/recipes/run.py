"""A whole run: teacher, distillation, report and export."""

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from slam_jax.base.errors import InputError, options_of, prefixed
from slam_jax.base.json_file import read_json, write_json
from slam_jax.config.options import Config, Evaluation
from slam_jax.data.batches import Source, check_position
from slam_jax.drawing.ladder import Artists, Ladder
from slam_jax.drawing.metrics.registry import check_metrics
from slam_jax.drawing.report import write_report
from slam_jax.drawing.samplers import on_mesh, student_sampler, teacher_sampler
from slam_jax.drawing.seen import extractor_of
from slam_jax.evaluation.prompts import read_prompts
from slam_jax.families.family import Family
from slam_jax.families.pipeline import (
    DENOISER,
    Params,
    Pipeline,
    cast_weights,
    student_config,
    student_weights,
)
from slam_jax.features.extract import Extractor
from slam_jax.parallel import runtime
from slam_jax.parallel.processes import as_first, compare, is_main
from slam_jax.parallel.sharding import make_mesh, shard, shardings_of
from slam_jax.recipes.distil import (
    Distillation,
    distil,
    info_of,
    teacher_dtype,
    trained_params,
    trained_shapes,
)
from slam_jax.recipes.embedded import without_text_encoders
from slam_jax.recipes.open_teacher import (
    TEACHER_FILE,
    check_same_teacher,
    open_teacher,
    teacher_folder,
)
from slam_jax.recipes.own_pictures import OwnPictures, own_pictures
from slam_jax.recipes.student import saved_student
from slam_jax.recipes.teacher import check_teacher, train_teacher
from slam_jax.reporting.page import try_page
from slam_jax.reporting.record import record_of
from slam_jax.training.checkpoint_files import read_position, steps_in
from slam_jax.training.metric_log import read_rows
from slam_jax.training.step import check_batch_size
from slam_jax.training.wandb_log import check_wandb
from slam_jax.training.workdir import RUN_FILE, TEACHER_METRICS_FILE, claimed, ladder_file


@dataclasses.dataclass(frozen=True)
class Run:
    """What a config asks for, opened: nothing is written yet.

    Attributes:
      config: the run.
      workdir: its folder.
      mesh: the devices.
      family: the teacher.
      source: examples, or the pictures that the teacher draws first.
      extractor: networks that metrics read; None: they read none.
    """

    config: Config
    workdir: Path
    mesh: Mesh
    family: Family
    source: Source | OwnPictures
    extractor: Extractor | None


def open_run(config: Config, workdir: Path) -> Run:
    """Opens teacher, data and devices; checks whatever of the config only these can tell.

    Raises:
      InputError: devices, batch size, teacher, data or steps do not fit; names the key.
    """
    check_wandb(config.wandb_project)
    with options_of("config"):
        mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
        check_metrics(config)
    with options_of("config.training"):
        check_batch_size(config.training, mesh)
    family = open_teacher(config, workdir)
    trained_shapes(family.pipeline, config)  # which a LoRA may not fit
    _check_evaluation(config, family)
    with prefixed("config.evaluation."):
        extractor = extractor_of(config.evaluation)
    if family.trains:
        with options_of("config.teacher.training"):
            check_batch_size(config.teacher.training, mesh)
        check_teacher(config.teacher, teacher_folder(config, workdir))
        if config.method.w > 0 and config.teacher.dropout == 0:
            raise InputError(
                "config.teacher.dropout = 0.0, expected more than 0, which guidance "
                "(config.method.w) needs"
            )
    else:
        check_same_teacher(config, workdir, family)
    source = own_pictures(config, workdir, family) or family.source(config.data)
    return Run(config, workdir, mesh, family, source, extractor)


def _check_evaluation(config: Config, family: Family) -> None:
    """Refuses step counts and prompts that the models cannot draw; says what of a prompt is cut."""
    schedule, evaluation = family.pipeline.schedule, config.evaluation
    for name, check in (
        ("student_steps", lambda steps: config.method.timesteps(steps, schedule)),
        ("teacher_steps", schedule.teacher_timesteps),
    ):
        for steps in getattr(evaluation, name):
            try:
                check(steps)
            except ValueError as error:
                raise InputError(f"config.evaluation.{name}: {error}") from error
    if evaluation.prompts and evaluation.prompts_file:
        raise InputError("config.evaluation: expected prompts or prompts_file, not both")
    name = "prompts_file" if evaluation.prompts_file else "prompts"
    with prefixed(f"config.evaluation.{name}: "):
        prompts = evaluation.prompts or family.pipeline.example_prompts
        if evaluation.prompts_file:
            prompts = read_prompts(evaluation.prompts_file).texts
        family.pipeline.prompts(prompts)
    if cut := [prompt for prompt in prompts if family.pipeline.cut(prompt)]:
        end = family.pipeline.cut(cut[0])
        print(
            f"note: config.evaluation.{name}: {len(cut)} too long for the text encoder; cut off of "
            f"the first: {end!r}",
            file=sys.stderr,
        )


def run(
    config: Config, workdir: Path, resume: bool = False, command: str = ""
) -> list[dict[str, Any]]:
    """Teacher, distillation, report and export; returns the rows of the report.

    Args:
      config: the run.
      workdir: its folder.
      resume: whether it may go on with a run that is there.
      command: what started it, for its record.

    Raises:
      InputError: something in the config or the workdir does not fit.
      Interrupted: Ctrl-C; the state is saved.
    """
    started = time.perf_counter()
    runtime.probe(implementation=config.execution.attention)
    same = {"workdir": str(workdir), "resume": resume, "versions": runtime.versions()}
    compare({"config": dataclasses.asdict(config), **same})
    if resume and is_main():
        read_rows(workdir)  # what is wrong with them is said before anything is loaded
    opened = open_run(config, workdir)
    if is_main():
        kind, count, mesh = jax.devices()[0].device_kind, jax.process_count(), opened.mesh
        axes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
        print(
            f"{mesh.size} device{'s' * (mesh.size > 1)} ({kind}), {axes}, processes: {count}",
            file=sys.stderr,
        )
    source, position = opened.source, read_position(workdir / "checkpoints") if resume else None
    if position and not isinstance(source, OwnPictures):  # which may still have to be drawn
        with prefixed("config.data: "):
            check_position(source, position)
    with claimed(workdir, config, resume):
        if is_main():
            write_json(workdir / RUN_FILE, record_of(command))
        if isinstance(source, OwnPictures):
            source = source.draw(opened.mesh)
        before = steps_in(workdir / "checkpoints")[-1:]
        rows, facts = _run(opened, source)
        if is_main():
            seconds = time.perf_counter() - started
            took = {"seconds": seconds, "peak_memory_gb": peak_memory_gb()}
            trained = steps_in(workdir / "checkpoints")[-1:] != before
            write_report(workdir, rows, facts, took if trained else None)
            try_page(workdir)
    return rows


def _run(run: Run, source: Source) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What `run` does in a workdir of its own, with the examples: (rows, facts) of the report."""
    config, family, mesh, method = run.config, run.family, run.mesh, run.config.method
    pipeline, samples = family.pipeline, run.workdir / "samples"
    if family.trains:
        folder = teacher_folder(config, run.workdir)
        train_teacher(family, config.teacher, source, folder, mesh)
    identity = family.identity()
    if is_main():
        write_json(run.workdir / TEACHER_FILE, identity)
    weights = family.weights(config.precision)
    params = trained_params(pipeline, config, weights[DENOISER])
    weights[DENOISER] = cast_weights(pipeline, weights[DENOISER], teacher_dtype(config))
    evaluation = _evaluation(config)
    texts = evaluation.prompts or pipeline.example_prompts
    prompts = without_text_encoders(pipeline, source, weights, texts, mesh)
    frozen = shard(weights, mesh)
    del weights
    network = student_config(pipeline, method)
    artists = dataclasses.replace(_artists(run, frozen, network), prompts=prompts)
    ladder = Ladder(artists, evaluation, config.seed, run.extractor, run.workdir / "features")
    of_student = _student_weights(config, pipeline, frozen[DENOISER], mesh)

    def draw_samples(trained: Params, step: int) -> dict[str, float]:
        started = time.perf_counter()
        _measure_teacher(run, ladder)
        measured = ladder.save(ladder_file(run.workdir, step), of_student(trained))
        best = config.training.best_metric
        compared = config.training.keep_best or config.training.patience
        if compared and best not in ("loss", *measured):
            raise InputError(
                f"config.training.best_metric = {best!r}: of these pictures are measured "
                f"{', '.join(measured)}"
            )
        return {**measured, "evaluation_seconds": time.perf_counter() - started}

    ema = distil(
        Distillation(config, pipeline, params, frozen, identity["fingerprints"], source, mesh),
        run.workdir,
        draw_samples,
        lambda: try_page(run.workdir),
    )
    info = {"teacher": identity, **info_of(config)}
    if is_main():
        saved = saved_student(family, config, ema, info)
        family.export(saved, run.workdir / "export")
    student = of_student(shard(ema, mesh))
    ladder.show(samples / "ladder.png", student)
    return ladder.report(student, family.reference()), {
        "devices": [str(device) for device in jax.devices()],
        **info,
    }


def _student_weights(
    config: Config, pipeline: Pipeline, teacher: Params, mesh: Mesh
) -> Callable[[Params], Params]:
    """What is trained of a student -> all of its weights; both on the mesh."""
    merge = partial(student_weights, pipeline, config.student)
    if config.student.kind == "full":  # which nothing is computed for
        return partial(merge, teacher)
    return partial(jax.jit(merge, out_shardings=shardings_of(teacher, mesh)), teacher)


def _evaluation(config: Config) -> Evaluation:
    """How a run is looked at, with the prompts of a file."""
    options = config.evaluation
    if options.prompts_file:
        prompts = read_prompts(options.prompts_file).texts
        options = dataclasses.replace(options, prompts=prompts)
    return options


def _measure_teacher(run: Run, ladder: Ladder) -> None:
    """Writes what the teacher's smaller numbers of steps measure, if that is not there yet."""
    path = run.workdir / TEACHER_METRICS_FILE
    how = {"seed": run.config.seed, **dataclasses.asdict(run.config.evaluation)}
    how = json.loads(json.dumps(how))
    known = path.exists() and read_json(path, "remove it").get("evaluation") == how
    if not as_first(known):
        measured = ladder.teacher_metrics()
        if is_main():
            write_json(path, {"metrics": measured, "evaluation": how})


def _artists(run: Run, frozen: Any, network: Any) -> Artists:
    """Samplers of teacher and student, for weights on the run's mesh."""
    pipeline, method, precision = run.family.pipeline, run.config.method, run.config.precision
    teacher = teacher_sampler(pipeline, method.w, precision.teacher)
    student = student_sampler(pipeline, network, method, precision.student)
    return Artists(
        pipeline,
        frozen,
        on_mesh(teacher, run.mesh, precision.teacher),
        on_mesh(student, run.mesh, precision.student),
    )


def peak_memory_gb() -> float:
    """The most memory that this process held so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
