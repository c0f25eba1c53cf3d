"""The student of a run, finished or not, from a checkpoint; and which teacher it began with."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.config.options import Config
from slam_jax.config.validate import freeze
from slam_jax.families.digits_pipeline import digits_pipeline
from slam_jax.families.family import student_config
from slam_jax.families.load import Model, read_pipeline, read_surroundings
from slam_jax.formats.diffusers_folder import Folder, fingerprints, resolve
from slam_jax.formats.flax_folder import SavedModel, load_model
from slam_jax.models import functional
from slam_jax.models.execution import Execution
from slam_jax.models.unet import UNet2DConditionModel
from slam_jax.recipes.distill import info_of
from slam_jax.training.checkpoint_files import best_step, read_part, steps_in

# Of a workdir: the run's config, and which teacher it began with.
RUN_FILE, TEACHER_FILE = "config.json", "teacher.json"


def from_checkpoint(
    workdir: Path, step: int | str | None = None, teacher_path: str = ""
) -> tuple[SavedModel, Folder | None]:
    """The student of a run, finished or not.

    Args:
      workdir: of the run.
      step: of the checkpoint; "best": the one with the lowest config.training.best_metric; None:
        the newest one.
      teacher_path: where the teacher is now; "": where the config says.

    Returns:
      The student with its EMA weights, and its teacher, which is None for digits.

    Raises:
      InputError: no run, no such checkpoint, or not the run's teacher.
    """
    config = freeze(_read_json(workdir / RUN_FILE, "the workdir of a run has it"))
    step = _choose_step(workdir / "checkpoints", step, config.training.best_metric)
    teacher = None
    if config.data.source == "digits":
        unet = config.digits.unet
        scheduler = digits_pipeline(unet, config.digits.prediction_type).scheduler
        made_by = load_model(teacher_path or config.teacher.path or workdir / "teacher").info
    else:
        teacher, made_by = _find_teacher(workdir, config, teacher_path)
        pipeline = read_pipeline(teacher)
        unet, scheduler = pipeline.unet, pipeline.scheduler
    unet = student_config(unet, config.method.conditioning)
    like = functional.abstract_params(UNet2DConditionModel, unet)
    params = read_part(workdir / "checkpoints", step, "ema", like)
    info = {"teacher": made_by, **info_of(config), "checkpoint": step}
    return SavedModel(unet, params, scheduler, info), teacher


def _choose_step(checkpoints: Path, step: int | str | None, metric: str) -> int:
    steps = steps_in(checkpoints)
    if steps and step == "best":
        if (best := best_step(checkpoints, metric)) is None:
            raise InputError(f"--step best: no checkpoint in {checkpoints} has a {metric}")
        print(f"step {best} has the lowest {metric}", file=sys.stderr)
        return best
    if not steps:
        raise InputError(f"{checkpoints}: no checkpoint in it yet; let the run reach its first")
    if step is not None and step not in steps:
        there = ", ".join(map(str, steps))
        raise InputError(f"--step {step}: {checkpoints} has no such checkpoint, it has {there}")
    return max(steps) if step is None else step


def _find_teacher(
    workdir: Path, config: Config, teacher_path: str
) -> tuple[Folder, dict[str, Any]]:
    record = workdir / TEACHER_FILE
    began_with = _read_json(record, "a run that began to distil has it")
    path = teacher_path or config.teacher.path
    # The commit that the run began with, even where the config names a branch that has moved on.
    same = path == began_with.get("path")
    teacher = resolve(path, began_with.get("revision", "") if same else "", config.teacher.variant)
    found = teacher_info(teacher)
    if part := other_part(began_with, found):
        raise InputError(
            f"{path}: its {part} is not the one that the run in {workdir} began with "
            f"({record}); say where that teacher is with --teacher"
        )
    return teacher, found


def other_part(began_with: dict[str, Any], found: dict[str, Any]) -> str | None:
    """The first part in which two teachers differ, by their `teacher_info`; None if in none."""
    recorded = began_with.get("fingerprints", {})
    parts = found["fingerprints"].items()
    return next((name for name, value in parts if recorded.get(name) != value), None)


def _read_json(path: Path, who_has_it: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {who_has_it}") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: damaged (no JSON object)")
    return content


def as_model(student: SavedModel, teacher: Folder | None, dtype: str = "float32") -> Model:
    """The student with its teacher's surroundings: what an export of it has to be.

    Args:
      student: of a run.
      teacher: its teacher; None for digits.
      dtype: of the text encoders' weights, as in `load`; the VAE's are float32, the UNet's are what
        the student has.

    Raises:
      InputError: a file of the teacher cannot be read.
    """
    if teacher is None:
        pipeline = digits_pipeline(student.unet, student.scheduler["prediction_type"])
        frozen = {}
    else:
        pipeline = read_pipeline(teacher)
        frozen = read_surroundings(teacher, pipeline, dtype, "float32")
        pipeline = dataclasses.replace(pipeline, unet=student.unet)
    execution = Execution(**student.info.get("execution", {}))  # older runs had no choice
    return Model(
        pipeline=dataclasses.replace(pipeline, execution=execution),
        frozen=frozen,
        params=student.params,
        is_student=True,
        num_ddim_timesteps=student.info["method"]["num_ddim_timesteps"],
        info=student.info,
    )


def teacher_info(teacher: Folder) -> dict[str, Any]:
    """Which teacher it was, for the record."""
    return {
        "path": teacher.name,
        "revision": teacher.revision,
        "variant": teacher.variant,
        "fingerprints": fingerprints(teacher),
    }
