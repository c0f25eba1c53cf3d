"""The teacher of a run: opened, and compared with the one that the run began with."""

from dataclasses import replace
from pathlib import Path

from slam_jax.base.errors import InputError, options_of
from slam_jax.base.json_file import read_json
from slam_jax.config.options import Config, Teacher
from slam_jax.families.family import Family, other_part
from slam_jax.families.registry import FAMILIES
from slam_jax.training.workdir import TEACHER_FILE

# Of a teacher that is trained here.
OF_TRAINING = ("seed", "network", "prediction_type", "dropout", "training")


def open_teacher(config: Config, workdir: Path, weights: bool = True) -> Family:
    """The teacher that a config names, computed as it says.

    Raises:
      InputError: there is no such family or teacher, or its schedule does not fit the method.
    """
    name = config.teacher.family
    if name not in FAMILIES:
        raise InputError(f"config.teacher.family = {name!r}, expected one of {', '.join(FAMILIES)}")
    if not FAMILIES[name].trains:
        for option in OF_TRAINING:
            if (given := getattr(config.teacher, option)) != getattr(Teacher(), option):
                raise InputError(
                    f"config.teacher.{option} = {given!r}: a teacher of {name} is not trained "
                    "here; leave it out"
                )
    size = config.data.resolution
    family = FAMILIES[name].open(config.teacher, workdir / "teacher", size, weights)
    family.pipeline = replace(family.pipeline, execution=config.execution)
    with options_of("config.method"):
        config.method.check(family.pipeline.schedule)
    return family


def teacher_folder(config: Config, workdir: Path) -> Path:
    """Where a teacher that is trained here is kept."""
    return Path(config.teacher.path) if config.teacher.path else workdir / "teacher"


def check_same_teacher(config: Config, workdir: Path, family: Family) -> None:
    """Compares the teacher with the one that the run in the workdir began with, if there is one.

    Raises:
      InputError: it is another one; names the part that differs. Or a file of it is missing or
        damaged, which is so noticed before anything is written.
    """
    record, identity = workdir / TEACHER_FILE, family.identity()
    if not record.exists():
        return
    began_with = read_json(record, "choose another --workdir")
    if part := other_part(began_with, identity):
        raise InputError(
            f"config.teacher.path = {config.teacher.path!r}: its {part} is not the one "
            f"that the run in {workdir} began with, of {began_with.get('path')} "
            f"{began_with.get('revision')}; give that teacher or choose another --workdir"
        )
