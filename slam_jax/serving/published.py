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
from slam_jax.families.latent_pipeline import LatentPipeline
from slam_jax.families.pipeline import Frozen, Params, Pipeline
from slam_jax.families.published_model import PublishedModel
from slam_jax.families.registry import reader_of
from slam_jax.families.stable_diffusion_folder import RECORD_FILE, read_surroundings
from slam_jax.formats.diffusers_folder import Folder, read_model_index
from slam_jax.formats.model_index import OTHERS
from slam_jax.method.method import Method
from slam_jax.models import functional
from slam_jax.serving import stock_pipeline
from slam_jax.serving.published_denoiser import (
    FAIL,
    OK,
    SKIPPED,
    Kind,
    Result,
    compare_with_torch,
    inspect_denoiser,
    reason,
    recorded_method,
)
from slam_jax.serving.published_kinds import KINDS, UNET
from slam_jax.serving.published_scheduler import check_scheduler, check_sigmas

STEPS = (1, 2, 4)
SMALLEST_SPREAD = 0.01  # standard deviation of a picture that is not one colour


def check(folder: Folder, out: Path | None = None) -> Iterator[Result]:
    """All checks of a folder, each as soon as it is done.

    Args:
      folder: a diffusers folder, or one with a denoiser's config.json and weights.
      out: PNG to draw the samples into; None: they are not kept.
    """
    path = folder.path.resolve()
    if not (path / "model_index.json").exists():
        try:
            kind = _kind_of(path)
        except InputError as error:
            yield Result(FAIL, "folder", str(error))
            return
        what = "UNet" if kind is UNET else kind.name
        yield Result(OK, "folder", f"a {what} alone, as it has no model_index.json")
        yield from _check_denoiser(kind, path, folder.variant, _read_json(path.parent))[0]
        yield Result(SKIPPED, "samples", "no VAE and no text encoder")
        return
    try:
        yield Result(OK, "folder", str(read_model_index(folder)["_class_name"]))
    except InputError as error:
        yield Result(FAIL, "folder", str(error))
        return
    record, family = _read_json(path), family_in(folder)
    kind = UNET if family is None else KINDS[family.denoiser_folder]
    results, params = _check_denoiser(kind, path / kind.name, folder.variant, record)
    yield from results
    scheduler = check_scheduler(folder, recorded_method(record))
    yield scheduler
    yield from check_sigmas(folder, record)
    try:
        pipeline, frozen, method = read_around(folder)
        yield Result(OK, "other weights", f"{' and '.join(frozen)}, all finite")
    # Whatever numbers that make no sense in a config.json lead to is a finding.
    except Exception as error:
        yield Result(FAIL, "other weights", reason(error))
        params = None
    if params is None or scheduler.status == FAIL:
        yield Result(SKIPPED, "samples", "a check above failed")
        return
    try:
        yield from draw_samples(pipeline, frozen, params, method, out)
    except Exception as error:
        yield Result(FAIL, "samples", reason(error))


def _kind_of(path: Path) -> Kind:
    """The kind of a denoiser that is alone in a folder; a UNet, where it does not say.

    Raises:
      InputError: it is of another kind.
    """
    name = _read_json(path, "config.json").get("_class_name", UNET.stock)
    kinds = {kind.stock: kind for kind in KINDS.values()}
    if name not in kinds:
        why = f" ({OTHERS[name]})" if name in OTHERS else ""
        file = path / "config.json"
        raise InputError(f"{file}: _class_name is {name!r}{why}, supported: {', '.join(kinds)}")
    return kinds[name]


def family_in(folder: Folder) -> type[PublishedModel] | None:
    """The family of a model; None: no family of published models reads it."""
    family = reader_of(folder.path)
    return family if family is not None and issubclass(family, PublishedModel) else None


def _check_denoiser(
    kind: Kind, where: Path, variant: str, record: Mapping[str, Any]
) -> tuple[list[Result], Params | None]:
    """Results, and the parameters if nothing failed."""
    results, config, params = inspect_denoiser(kind, where, variant, record)
    if config is None or params is None or any(r.status == FAIL for r in results):
        return [*results, Result(SKIPPED, "prediction", "a check above failed")], None
    result = compare_with_torch(kind, where, variant, config, params)
    return [*results, result], params if result.status != FAIL else None


def _read_json(path: Path, name: str = RECORD_FILE) -> Mapping[str, Any]:
    """A file of a folder, how a student of ours was made; empty where it cannot be read."""
    try:
        return read_json(path / name, "")
    except InputError:
        return {}


def read_around(folder: Folder) -> tuple[LatentPipeline, Frozen, Method | None]:
    """The VAE and the text encoders with their weights, and how the model draws, if in few steps.

    Raises:
      InputError: they cannot be read, do not fit the denoiser, or are not finite.
    """
    family = family_in(folder)
    assert family is not None  # its model_index.json was read
    pipeline = family.read_pipeline(folder, None, None)
    frozen = read_surroundings(folder, pipeline, "float32", "float32")
    for name, params in frozen.items():
        for key, array in functional.flatten(params).items():
            if not np.isfinite(array).all():
                raise InputError(f"{folder.path / name}: NaN or infinity in {key}")
    is_student = family.is_student(folder, pipeline)
    return pipeline, frozen, family.method_of_student(folder, pipeline) if is_student else None


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
