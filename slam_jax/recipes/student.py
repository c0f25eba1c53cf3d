"""The student of a run, finished or not, from a checkpoint; and models from wherever they are."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json
from slam_jax.base.options import OptionError
from slam_jax.config.options import Config, Precision
from slam_jax.families.family import Family, LoadOptions, Model, other_part
from slam_jax.families.pipeline import DENOISER, Params, student_config, student_weights
from slam_jax.families.registry import FAMILIES, reader_of
from slam_jax.formats.diffusers_folder import resolve
from slam_jax.formats.flax_folder import PARAMS_FILE, SavedModel, load_model
from slam_jax.models import lora
from slam_jax.models.functional import cast
from slam_jax.recipes.distil import info_of, trained_shapes
from slam_jax.recipes.open_teacher import TEACHER_FILE, open_teacher, teacher_folder
from slam_jax.recipes.teacher import OPTIONS_FILE
from slam_jax.training.checkpoint_files import best_step, read_part, steps_in
from slam_jax.training.workdir import RUN_FILE, read_run

MANIFEST = "artifact.json"  # of a sampler that draws without this package
# Of a teacher that is not where the config of its run says.
MOVED = (
    "run this in the folder where the run was started, or say where its teacher is: slam-jax "
    "export --teacher"
)


def from_checkpoint(
    workdir: Path, step: int | str | None = None, teacher_path: str = ""
) -> tuple[SavedModel, Family]:
    """The student of a run, finished or not, and its teacher.

    Args:
      workdir: of the run.
      step: of the checkpoint; "best": the one with the lowest config.training.best_metric; None:
        the newest one.
      teacher_path: where the teacher is now; "": where the config says.

    Returns:
      The student with its EMA weights, and its teacher.

    Raises:
      InputError: no run, no such checkpoint, or not the run's teacher.
    """
    config = read_run(workdir)
    step = _choose_step(workdir / "checkpoints", step, config.training.best_metric)
    family = find_teacher(workdir, config, teacher_path)
    like = trained_shapes(family.pipeline, config)
    trained = config.method.student_of(read_part(workdir / "checkpoints", step, "ema", like))
    info = {"teacher": family.identity(), **info_of(config), "checkpoint": step}
    return saved_student(family, config, trained, info), family


def saved_student(
    family: Family, config: Config, trained: Params, info: dict[str, Any]
) -> SavedModel:
    """A student as it is exported: of a LoRA no weights, where programs read LoRA files.

    Args:
      family: its teacher.
      config: of its run.
      trained: what was trained of it, in the host's memory.
      info: how it was made.

    Raises:
      InputError: a file of the teacher cannot be read.
    """
    pipeline, network = family.pipeline, student_config(family.pipeline, config.method)
    saved = SavedModel(family.name, network.to_dict(), trained, pipeline.scheduler, info)
    if config.student.kind == "full":
        teacher = family.denoiser() if pipeline.constants else {}
        params = student_weights(pipeline, config.student, teacher, trained)
        return dataclasses.replace(saved, params=params)
    adapters = lora.scaled(trained, config.student.scale)
    saved = dataclasses.replace(saved, params={}, lora=adapters)
    return saved if family.in_diffusers else whole(saved, family)


def whole(student: SavedModel, family: Family) -> SavedModel:
    """A student that is a LoRA with all its weights too.

    Args:
      student: of a run.
      family: its teacher.

    Raises:
      InputError: it was trained whole, or a file of the teacher cannot be read.
    """
    if student.lora is None:
        raise InputError("--merge: the student of this run was trained whole; leave it out")
    if student.params:
        raise InputError(f"--merge: exports of {family.name} are whole anyway; leave it out")
    return dataclasses.replace(student, params=lora.merged(family.denoiser(), student.lora))


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


def find_teacher(workdir: Path, config: Config, teacher_path: str = "") -> Family:
    """The teacher that a run began with.

    Args:
      workdir: of the run.
      config: of the run.
      teacher_path: where the teacher is now; "": where the config says.

    Raises:
      InputError: it cannot be found, or another one is there.
    """
    path, record = teacher_path or config.teacher.path, workdir / TEACHER_FILE
    teacher = dataclasses.replace(config.teacher, path=path)
    kept = FAMILIES.get(teacher.family)
    if kept is not None and kept.trains:
        moved = dataclasses.replace(config, teacher=teacher)
        if not (folder := teacher_folder(moved, workdir)).is_dir():
            raise InputError(f"{folder}: no such folder; {MOVED}")
        return open_teacher(moved, workdir)
    began_with = read_json(record, "a run that began to distil has it")
    # The commit that the run began with, even where the config names a branch that has moved on.
    revision = began_with.get("revision", "") if path == began_with.get("path") else ""
    teacher = dataclasses.replace(teacher, revision=revision)
    try:
        family = open_teacher(dataclasses.replace(config, teacher=teacher), workdir)
    except InputError as error:
        if Path(path).expanduser().exists():
            raise
        raise InputError(f"{error}; {MOVED}") from error
    if part := other_part(began_with, family.identity()):
        raise InputError(
            f"{path}: its {part} is not the one that the run in {workdir} began with "
            f"({record}); say where that teacher is with --teacher"
        )
    return family


def with_lora(student: SavedModel, family: Family, rank: int, targets: Sequence[str]) -> SavedModel:
    """A student that was trained whole, with the LoRA that is nearest to it.

    Args:
      student: of a run.
      family: its teacher.
      rank: of the LoRA.
      targets: ends of the paths of the layers that it changes.

    Raises:
      InputError: it has a LoRA already, or an input that its teacher lacks; or the rank is too
        large.
    """
    if student.lora is not None:
        raise InputError("--extract-lora: the student of this run is a LoRA; it is exported anyway")
    if student.network != family.pipeline.network.to_dict():
        raise InputError(
            "--extract-lora: this student's network has an input for gamma, which a LoRA has no "
            "place for; train it with config.method.conditioning = 'snr'"
        )
    teacher = family.denoiser()
    try:
        adapters, kept = lora.extracted(teacher, student.params, rank, targets)
    except OptionError as error:
        raise InputError(f"--extract-lora: {error}") from error
    info = {**student.info, "lora_keeps": kept}
    return dataclasses.replace(student, lora=adapters, info=info)


def as_model(student: SavedModel, config: Config, family: Family, dtype: str = "float32") -> Model:
    """The student with its teacher's surroundings: what an export of it has to be.

    Args:
      student: of a run.
      config: of the run.
      family: its teacher.
      dtype: of the text encoders' weights; the VAE's are float32, the denoiser's are what the
        student has.

    Raises:
      InputError: a file of the teacher cannot be read.
    """
    frozen = family.weights(Precision(text_encoder=dtype))
    teacher, params = frozen.pop(DENOISER), student.params
    if student.lora is not None and not params:
        params = lora.merged(teacher, student.lora)
    del teacher
    network = student_config(family.pipeline, config.method)
    pipeline = dataclasses.replace(family.pipeline, network=network, execution=config.execution)
    return Model(pipeline, frozen, params, config.method, student.info)


def load_options(arguments: Any) -> LoadOptions:
    """How a command line says that its model is loaded.

    Args:
      arguments: of argparse.
    """
    names = ("revision", "variant", "height", "width", "dtype", "allow_unused", "method")
    given = {name: getattr(arguments, name) for name in names}
    return LoadOptions(**given, loras=tuple(arguments.lora))


def load(path: str, options: LoadOptions | None = None) -> Model:
    """A student or a teacher with its weights.

    Args:
      path: a folder, the workdir of a finished run, or a repository of the Hugging Face hub.
      options: how it is loaded; None: in float32, in the size it was trained on.

    Raises:
      InputError: it cannot be found or read, or lacks something; names the file.
    """
    options, local = options or LoadOptions(), Path(path)
    if (local / "export").is_dir():
        local = local / "export"
    name = str(local) if local.is_dir() else path
    found = local
    if not local.exists():  # on the hub; what it has beside weights says of which family it is
        snapshot = resolve(path, options.revision, options.variant, weights=False)
        found, options = snapshot.path, dataclasses.replace(options, revision=snapshot.revision)
    if (family := reader_of(found)) is not None:
        model = family.load(name, options)
        return dataclasses.replace(model, params=cast(model.params, options.dtype))
    if (local / MANIFEST).exists():
        raise InputError(
            f"{path}: a sampler of slam-jax export --artifact, which draws by itself: python "
            f"{local / 'draw.py'} --seed 3 --out picture.png; {local / 'README.md'} says how to "
            "give it prompts"
        )
    if why := _unfinished(local):
        raise InputError(f"{path}: {why}")
    if (found / PARAMS_FILE).exists():
        load_model(found)  # says what is wrong with it
    raise InputError(f"{path}: no model of a family there is ({', '.join(FAMILIES)})")


def _unfinished(folder: Path) -> str:
    """What there is in the folder of a training that has left no model yet, and what to do; "": it
    is no such folder."""
    teacher, go_on = folder / "teacher", "go on with it (the same command with --resume)"
    theirs = f", or take its teacher: {teacher}" if reader_of(teacher) else ""
    if not (folder / RUN_FILE).exists():
        in_training = (folder / "checkpoints").is_dir()
        return f"this training has not finished; {go_on}{theirs}" if in_training else ""
    if steps_in(folder / "checkpoints"):
        return f"this run has not finished; {go_on}, or use slam-jax export{theirs}"
    first = ": its teacher is trained first" if (teacher / OPTIONS_FILE).exists() else ""
    return f"this run has no student yet{'' if theirs else first}; {go_on}{theirs}"
