"""The package in a notebook: load a model, draw with it, distil it, measure it.

student = slam_jax.load("runs/digits")
images = slam_jax.sample(student, ["3", "7"], steps=4)
student = slam_jax.distill("digits", workdir="runs/mine", method={"gamma": "one"})
rows = slam_jax.evaluate(student, teacher=slam_jax.load("runs/digits/teacher"))
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from slam_jax.base.errors import InputError, options_of, prefixed
from slam_jax.base.options import check
from slam_jax.config.command_line import read_recipe
from slam_jax.config.options import Config, Evaluation
from slam_jax.config.validate import freeze, with_method
from slam_jax.drawing.draw import Settings, choose_guidance, draw_all, make_sampler
from slam_jax.drawing.ladder import Artists, Ladder
from slam_jax.drawing.metrics.registry import METRICS
from slam_jax.drawing.samplers import student_sampler, teacher_sampler
from slam_jax.drawing.seen import extractor_of
from slam_jax.families.family import LoadOptions, Model
from slam_jax.families.pipeline import DENOISER
from slam_jax.parallel import runtime
from slam_jax.recipes import student as students
from slam_jax.recipes.run import run


def load(
    path: str | Path,
    revision: str = "",
    variant: str = "",
    height: int | None = None,
    width: int | None = None,
    dtype: str = "float32",
    loras: Sequence[str] = (),
    allow_unused: bool = False,
    method: str = "",
) -> Model:
    """A student or a teacher with its weights.

    Args:
      path: a folder, the workdir of a finished run, or a repository of the Hugging Face hub.
      revision: commit, tag or branch of a repository.
      variant: such as "fp16", of weight files.
      height, width: of the pictures, in pixels; None: the size that it was trained on.
      dtype: of the denoiser's and the text encoders' weights; the VAE's are float32.
      loras: merged into the weights; each a file, a folder or a repository of the hub, and perhaps
        ":weight".
      allow_unused: whether keys in their files that are of no layer are passed over.
      method: by which the model draws with a LoRA for few steps that has no record, such as "lcm".

    Raises:
      InputError: it cannot be found or read; names the file.
    """
    runtime.configure()
    options = LoadOptions(
        revision, variant, height, width, dtype, tuple(loras), allow_unused, method
    )
    return students.load(str(path), options)


def sample(
    model: Model,
    prompts: str | Sequence[str],
    steps: int = 4,
    seed: int = 0,
    guidance: float | None = None,
    dtype: str = "float32",
) -> UInt8[np.ndarray, "B H W C"]:
    """Pictures of prompts.

    Args:
      model: a student, or a teacher.
      prompts: one, or B of them.
      steps: network evaluations per picture.
      seed: of the noise; picture i has that of (seed, i).
      guidance: the usual scale, of teachers only; None: 7.5.
      dtype: what the denoiser computes in.

    Raises:
      InputError: impossible numbers, or a prompt that the model cannot draw.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise InputError("sample: no prompts; expected one or more")
    settings = Settings(steps, choose_guidance(model, guidance), dtype=dtype)
    draw, batch = make_sampler(model, settings), model.pipeline.prompts(texts)
    return np.stack(list(draw_all(model, draw, batch, seed, min(len(texts), 8))))


def distill(
    config: str | ConfigDict | Config, workdir: str | Path, resume: bool = False, **changes: Any
) -> Model:
    """Runs a recipe in a workdir, and loads the student: what `slam-jax train` does.

    Args:
      config: a recipe's name, such as "digits" or "sd:tiny", a file's path, or a config.
      workdir: folder of the run.
      resume: go on with the run in it, if there is one.
      changes: groups of options and what is changed in them, such as training={"steps": 100}.

    Raises:
      InputError: something in config or workdir does not fit; names the key.
      Interrupted: Ctrl-C; the state is saved.
    """
    runtime.configure()
    if isinstance(config, str):
        config = read_recipe(config)
    values = config.to_dict() if isinstance(config, ConfigDict) else dataclasses.asdict(config)
    values["method"] = with_method(values["method"], changes.get("method", {}).get("name"))
    run(freeze(_changed(values, changes)), Path(workdir), resume)
    return load(workdir)


def _changed(values: Any, changes: Any) -> Any:
    """Nested options with others in the places of some."""
    if not isinstance(values, Mapping) or not isinstance(changes, Mapping):
        return changes
    return {**values, **{key: _changed(values.get(key), new) for key, new in changes.items()}}


def evaluate(
    student: Model, teacher: Model, seed: int = 0, guidance: float | None = None, **options: Any
) -> list[dict[str, Any]]:
    """A row of metrics for each model and number of steps, as in the report of a run.

    Args:
      student: whose pictures are measured.
      teacher: whose pictures of the same prompts and noise they are compared with.
      seed: of the noise.
      guidance: the teacher's usual scale; None: what the student learnt.
      options: of `Evaluation`, such as student_steps=(1, 4) or metrics=("rmse_to_teacher",).

    Raises:
      InputError: the models do not belong together.
    """
    if student.method is None or teacher.method is not None:
        raise InputError("evaluate: expected a student and its teacher, in this order")
    w = student.method.w if guidance is None else guidance - 1
    with options_of("evaluate"):
        check(w >= 0, "guidance", guidance, "1 (none) or more")
        evaluation = Evaluation(**options)
        for name in evaluation.metrics:
            check(name in METRICS, "metrics", name, f"one of {', '.join(METRICS)}")
        for steps in evaluation.student_steps:
            student.method.timesteps(steps, student.pipeline.schedule)
    artists = Artists(
        student.pipeline,
        {**teacher.frozen, DENOISER: teacher.params},
        teacher_sampler(teacher.pipeline, w),
        student_sampler(student.pipeline, student.pipeline.network, student.method),
    )
    with prefixed("evaluate: "):
        ladder = Ladder(artists, evaluation, seed, extractor_of(evaluation))
    return ladder.report(student.params, student.reference)
