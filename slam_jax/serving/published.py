"""Checks a published student: are its files whole, do they fit together, does it draw?"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json
from slam_jax.drawing import pictures
from slam_jax.drawing.draw import TEACHER_GUIDANCE
from slam_jax.drawing.samplers import student_sampler, teacher_sampler
from slam_jax.families.pipeline import Frozen, Params, Pipeline
from slam_jax.families.stable_diffusion_folder import (
    FEW_STEPS,
    RECORD_FILE,
    is_student,
    method_of_student,
    read_pipeline,
    read_surroundings,
)
from slam_jax.families.stable_diffusion_pipeline import StableDiffusionPipeline
from slam_jax.formats.diffusers_folder import Folder, read_config, read_model_index
from slam_jax.method.method import Method
from slam_jax.method.slam import Slam
from slam_jax.method.variance_preserving import (
    PREDICTION_TYPES,
    TIMESTEP_SCALING,
    VariancePreserving,
    distillation_grid,
)
from slam_jax.models import functional
from slam_jax.serving import stock_pipeline
from slam_jax.serving.published_unet import (
    FAIL,
    OK,
    SKIPPED,
    Result,
    compare_with_torch,
    inspect_unet,
    reason,
    recorded_method,
)

STEPS = (1, 2, 4)
SMALLEST_SPREAD = 0.01  # standard deviation of a picture that is not one colour
BETAS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "trained_betas": None,
}
LCM = {"timestep_scaling": TIMESTEP_SCALING, "clip_sample": False, "thresholding": False}


def check(folder: Folder, out: Path | None = None) -> Iterator[Result]:
    """All checks of a folder, each as soon as it is done.

    Args:
      folder: a diffusers folder, or one with a UNet's config.json and weights.
      out: PNG to draw the samples into; None: they are not kept.
    """
    path = folder.path.resolve()
    if not (path / "model_index.json").exists():
        yield Result(OK, "folder", "a UNet alone, as it has no model_index.json")
        yield from _check_unet(path, folder.variant, _read_record(path.parent))[0]
        yield Result(SKIPPED, "samples", "no VAE and no text encoder")
        return
    try:
        yield Result(OK, "folder", str(read_model_index(folder)["_class_name"]))
    except InputError as error:
        yield Result(FAIL, "folder", str(error))
        return
    record = _read_record(path)
    results, params = _check_unet(path / "unet", folder.variant, record)
    yield from results
    scheduler = check_scheduler(folder, recorded_method(record))
    yield scheduler
    try:
        pipeline, frozen = read_around_unet(folder)
        yield Result(OK, "other weights", f"{' and '.join(frozen)}, all finite")
    # Whatever numbers that make no sense in a config.json lead to is a finding.
    except Exception as error:
        yield Result(FAIL, "other weights", reason(error))
        params = None
    if params is None or scheduler.status == FAIL:
        yield Result(SKIPPED, "samples", "a check above failed")
        return
    try:
        method = method_of_student(folder, pipeline) if is_student(folder, pipeline) else Slam()
        yield from draw_samples(pipeline, frozen, params, method, out)
    except Exception as error:
        yield Result(FAIL, "samples", reason(error))


def _check_unet(
    where: Path, variant: str, record: Mapping[str, Any]
) -> tuple[list[Result], Params | None]:
    """Results, and the parameters if nothing failed."""
    results, config, params = inspect_unet(where, variant, record)
    if config is None or params is None or any(r.status == FAIL for r in results):
        return [*results, Result(SKIPPED, "prediction", "a check above failed")], None
    result = compare_with_torch(where, variant, config, params)
    return [*results, result], params if result.status != FAIL else None


def _read_record(path: Path) -> Mapping[str, Any]:
    """How a student of ours was made; empty for others."""
    try:
        return read_json(path / RECORD_FILE, "")
    except InputError:
        return {}


def check_scheduler(folder: Folder, method: Method | None) -> Result:
    """A scheduler for few steps with settings that fit the distillation, or the teacher's with its
    betas.

    Args:
      folder: the diffusers folder.
      method: how the student was distilled here, hence which scheduler it has; None: not known.
    """
    try:
        config = {**LCM, **read_config(folder, "scheduler")}  # it may leave out what is usual
        count = config.get("num_train_timesteps", 1000)
        kind, prediction = config.get("_class_name"), config.get("prediction_type", "epsilon")
        wanted, wrong, facts = BETAS, [], f"{kind}, {prediction}"
        if prediction not in PREDICTION_TYPES:
            wrong.append(f"prediction_type = {prediction!r}")
        if kind in FEW_STEPS:
            steps = config.get("original_inference_steps", 50)
            wanted, facts = (
                {**BETAS, **LCM},
                f"{facts}, original_inference_steps {steps} of {count}",
            )
            try:
                distillation_grid(count, steps)
            except (ValueError, TypeError):
                wrong.append(f"original_inference_steps = {steps!r}, expected a divisor of {count}")
        elif method is None:
            facts += ", the teacher's: give the pipeline an LCMScheduler before drawing"
        own = (
            method.diffusers_scheduler(VariancePreserving.from_config({}))["_class_name"]
            if method
            else kind
        )
        if kind != own:
            wrong.append(f"_class_name = {kind!r}, expected {own!r}")
    except InputError as error:
        return Result(FAIL, "scheduler", f"{error}")
    wrong += [
        f"{key} = {config.get(key)!r}, expected {value!r}"
        for key, value in wanted.items()
        if config.get(key) != value
    ]
    return Result(FAIL if wrong else OK, "scheduler", "; ".join(wrong) or facts)


def read_around_unet(folder: Folder) -> tuple[StableDiffusionPipeline, Frozen]:
    """The VAE and the text encoders, with their weights.

    Raises:
      InputError: they cannot be read, do not fit the UNet, or are not finite.
    """
    pipeline = read_pipeline(folder)
    frozen = read_surroundings(folder, pipeline, "float32", "float32")
    for name, params in frozen.items():
        for key, array in functional.flatten(params).items():
            if not np.isfinite(array).all():
                raise InputError(f"{folder.path / name}: NaN or infinity in {key}")
    return pipeline, frozen


def draw_samples(
    pipeline: Pipeline,
    frozen: Frozen,
    params: Params,
    method: Method | None,
    out: Path | None,
) -> Iterator[Result]:
    """Two pictures in each of 1, 2 and 4 steps: finite, and not of one colour. They are a teacher's
    where there is no method."""
    if method is None:
        draw = teacher_sampler(pipeline, TEACHER_GUIDANCE - 1)
    else:
        draw = student_sampler(pipeline, pipeline.network, method)
    batch, rows = pipeline.prompts(stock_pipeline.PROMPTS), {}
    for steps in STEPS:
        images = np.asarray(draw(frozen, params, batch, (0, 0), steps=steps))
        # Over the pixels of a channel: a picture of one colour has channels that differ.
        spread = float(images.std(axis=(1, 2)).max(axis=-1).min())
        status = OK if spread > SMALLEST_SPREAD else FAIL  # and NaN fails
        yield Result(
            status, f"samples, {steps}", f"standard deviations from {spread:.3f}, of [-1, 1]"
        )
        rows[f"{steps} steps"] = images
    if out is not None:
        pictures.save(pictures.grid(rows, scale=1), out)
