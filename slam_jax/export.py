"""Exports a student: a folder that the stock pipelines of diffusers run, and that loads here.

python -m slam_jax.export --workdir runs/sd --out sd-student [--step 4000|best] [--verify]

    model_index.json   scheduler/ (LCMScheduler)   unet/ (the student's EMA weights, float32)
    vae/   text_encoder/   tokenizer/              the teacher's; SDXL has a second pair
    slam.json                                      how the student was made, and how to use it
    flax/                                          config.json and flax_params.safetensors
    README.md                                      a model card

A run that finishes writes this into export/ of its workdir. A digits student is the two files of
flax/ alone: diffusers has no pipeline for it.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slam_jax import runtime, torch_check
from slam_jax.checkpoint_files import best_step, read_part, steps_in
from slam_jax.config import Config
from slam_jax.distill import info_of
from slam_jax.errors import BackendError, InputError
from slam_jax.freeze import freeze
from slam_jax.models import functional, weights
from slam_jax.models.digits_pipeline import digits_pipeline
from slam_jax.models.folder import CLASSES_XL, Folder, fingerprints, read_model_index, resolve
from slam_jax.models.folder_write import (
    USAGE,
    copy_surroundings,
    lcm_scheduler,
    model_index,
    write_card,
    write_json,
    write_unet,
)
from slam_jax.models.load import RECORD_FILE, Model, read_pipeline, read_surroundings
from slam_jax.models.pipeline import student_config
from slam_jax.models.saved import CONFIG_FILE, PARAMS_FILE, SavedModel, load_model, save_model
from slam_jax.models.unet import UNet2DConditionModel

# Of a workdir: the run's config, and which teacher it began with.
RUN_FILE, TEACHER_FILE = "config.json", "teacher.json"
# All that an export has at its top.
EXPORTED = {*CLASSES_XL, "scheduler", "flax", "model_index.json", "README.md", RECORD_FILE}


def write_folder(
    student: SavedModel,
    teacher: Folder,
    out: Path,
    checks: Sequence[Callable[[Model, Path], None]] = (),
) -> None:
    """Writes a text-to-image student, whole or not at all; replaces an earlier export.

    Args:
      student: its info has "method", as `distill` gives it.
      teacher: where the VAE, the text encoders and the tokenizers come from.
      out: the folder to make.
      checks: called with the student and the finished folder before that becomes `out`, which an
        exception prevents.

    Raises:
      InputError: `out` holds something else than an export or cannot be written, or a file of the
        teacher is missing or damaged; names it.
    """
    if teacher.path.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{out}: the teacher is in it; choose another folder for the student")
    method, index = student.info["method"], model_index(read_model_index(teacher))
    unet = student.unet
    record = {"usage": USAGE, "gamma": 1.0, "teacher": teacher_info(teacher), **student.info}
    with whole_folder(out) as folder:
        write_json(folder / "model_index.json", index)
        write_json(
            folder / "scheduler" / "scheduler_config.json",
            lcm_scheduler(student.scheduler, method["num_ddim_timesteps"]),
        )
        write_unet(folder / "unet", unet, student.params)
        copy_surroundings(teacher, index, folder)
        save_model(folder / "flax", student)
        write_card(folder / "README.md", teacher.name, index["_class_name"], method["w"], unet)
        write_json(folder / RECORD_FILE, record)
        for check in checks:
            check(as_model(student, teacher), folder)


def teacher_info(teacher: Folder) -> dict[str, Any]:
    """Which teacher it was, for the record."""
    return {
        "path": teacher.name,
        "revision": teacher.revision,
        "variant": teacher.variant,
        "fingerprints": fingerprints(teacher),
    }


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end, and disappears when anything fails.

    An earlier export in its place is kept until then.

    Raises:
      InputError: `out` holds something else than an export, or cannot be written.
    """
    if out.exists() and not _is_export(out):
        raise InputError(f"{out}: not empty, and no earlier export; choose another folder")
    out = out.absolute()
    # The same names every time: what a killed export left is removed by the next one.
    unfinished, previous = (out.with_name(f".{out.name}.{end}") for end in ("unfinished", "old"))
    try:
        if previous.exists() and not out.exists():  # killed between the two renames below
            previous.rename(out)
        for leftover in (unfinished, previous):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        if out.exists():
            out.rename(previous)
        unfinished.rename(out)
    except (OSError, weights.SafetensorError) as error:
        raise InputError(f"{out}: cannot be written: {' '.join(str(error).split())}") from error
    finally:
        if previous.exists() and not out.exists():
            previous.rename(out)
        for leftover in (unfinished, previous):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_export(folder: Path) -> bool:
    """Whether it is ours to replace: an earlier export, of digits or not, or an empty folder."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    is_ours = RECORD_FILE in names and names <= EXPORTED
    return is_ours or names in (set(), {CONFIG_FILE, PARAMS_FILE})


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


def as_model(student: SavedModel, teacher: Folder) -> Model:
    """The student with its teacher's surroundings, in float32: what the export has to be.

    Raises:
      InputError: a file of the teacher cannot be read.
    """
    pipeline = read_pipeline(teacher)
    return Model(
        pipeline=dataclasses.replace(pipeline, unet=student.unet),
        frozen=read_surroundings(teacher, pipeline, "float32", "float32"),
        params=student.params,
        is_student=True,
        num_ddim_timesteps=student.info["method"]["num_ddim_timesteps"],
        info=student.info,
    )


def run(arguments: argparse.Namespace) -> Path:
    """Exports what the command line asks for, and returns the folder."""
    out = arguments.out or arguments.workdir / "export"
    if arguments.verify:
        torch_check.require("--verify")
    student, teacher = from_checkpoint(arguments.workdir, arguments.step, arguments.teacher)
    if teacher is not None:
        checks = [torch_check.verify] if arguments.verify else []
        write_folder(student, teacher, out, checks)
    elif arguments.verify:
        raise InputError("--verify: diffusers has no pipeline for digits to compare with")
    else:
        with whole_folder(out) as folder:
            save_model(folder, student)
    return out


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m slam_jax.export",
        description="Export the student (EMA weights) of a run, finished or interrupted: a folder "
        "for the pipelines of diffusers. A digits student becomes config.json and "
        "flax_params.safetensors, as diffusers has no pipeline for it.",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of the run")
    parser.add_argument("--out", type=Path, help="folder to make; default: export/ in the workdir")
    parser.add_argument(
        "--step",
        type=lambda text: text if text == "best" else int(text),
        metavar="N|best",
        help="of the checkpoint; best: by config.training.best_metric; default: the newest",
    )
    parser.add_argument("--teacher", default="", help="where it is now, if it was moved")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="draw with torch and diffusers too, and fail where pictures differ (slow)",
    )
    runtime.configure()
    try:
        out = run(parser.parse_args(argv))
    except (InputError, BackendError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"student: {out}")


if __name__ == "__main__":
    main()
