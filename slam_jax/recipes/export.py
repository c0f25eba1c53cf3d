"""Writes a student into a folder that the stock pipelines of diffusers run, and that loads here."""

from collections.abc import Callable, Sequence
from pathlib import Path

from slam_jax.base.errors import InputError
from slam_jax.base.out_folder import whole_folder
from slam_jax.families.load import RECORD_FILE, Model
from slam_jax.formats.diffusers_folder import CLASSES_XL, Folder, read_model_index
from slam_jax.formats.diffusers_write import (
    USAGE,
    copy_surroundings,
    lcm_scheduler,
    model_index,
    write_card,
    write_json,
    write_unet,
)
from slam_jax.formats.flax_folder import CONFIG_FILE, PARAMS_FILE, SavedModel, save_model
from slam_jax.recipes.student import as_model, teacher_info

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
    with whole_folder(out, is_export, "export") as folder:
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


def is_export(names: set[str]) -> bool:
    """Whether these are the files of an earlier export, of digits or not."""
    return (RECORD_FILE in names and names <= EXPORTED) or names == {CONFIG_FILE, PARAMS_FILE}
