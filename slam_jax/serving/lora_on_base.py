"""Checks LoRAs on the model that they are merged into: do they fit it, does it draw with them?"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from slam_jax.base.errors import InputError
from slam_jax.drawing.draw import TEACHER_GUIDANCE
from slam_jax.families.family import LoadOptions, Model
from slam_jax.families.pipeline import DENOISER
from slam_jax.families.stable_diffusion_lora import locate, with_loras
from slam_jax.formats.diffusers_folder import Folder, read_model_index
from slam_jax.formats.lora_names import Names
from slam_jax.models.published_networks import kernel_shapes
from slam_jax.serving.published import draw_samples, family_in, read_around
from slam_jax.serving.published_denoiser import (
    FAIL,
    OK,
    SKIPPED,
    Kind,
    Result,
    compare_with_torch,
    inspect_denoiser,
    reason,
)
from slam_jax.serving.published_kinds import KINDS, UNET
from slam_jax.serving.published_lora import Base, check_lora


def check_loras(folder: Folder, options: LoadOptions, out: Path | None = None) -> Iterator[Result]:
    """All checks, each as soon as it is done.

    Args:
      folder: a diffusers folder, of a teacher or of a student.
      options: which LoRAs, each a file, a folder or a repository of the hub, and perhaps ":weight";
        and how the model draws with them.
      out: PNG to draw the samples into; None: they are not kept.

    Raises:
      InputError: a LoRA cannot be found.
    """
    located = [locate(spelled) for spelled in options.loras]
    family = family_in(folder)
    kind = KINDS[family.denoiser_folder] if family else UNET
    results, model = read_base(folder, kind)
    yield from results
    if model is None:
        yield Result(SKIPPED, "lora", "a check above failed")
        return
    parts = {DENOISER: model.params, **{n: p for n, p in model.frozen.items() if n != "vae"}}
    layers, failed = kernel_shapes(parts), False
    per_block = getattr(model.pipeline.network, "layers_per_block", None)
    base = Base("this model", layers, Names(layers, per_block), kind.words)
    for path, factor in located:
        yield Result(OK, "lora", f"{path} at {factor:g}")
        for result in check_lora(path, lambda _: [base], options.allow_unused):
            failed |= result.status == FAIL
            yield result
    if failed:
        yield Result(SKIPPED, "prediction", "a check above failed")
        yield Result(SKIPPED, "samples", "a check above failed")
        return
    try:
        merged = with_loras(model, options)
    except InputError as error:
        yield Result(FAIL, "merged", str(error))
        return
    yield from _check_merged(folder, kind, merged, located, out)


def read_base(folder: Folder, kind: Kind) -> tuple[list[Result], Model | None]:
    """What is said of a model without its LoRAs; and the model, unless something is wrong."""
    path, results = folder.path.resolve(), []
    try:
        results.append(Result(OK, "folder", str(read_model_index(folder)["_class_name"])))
        found, _, params = inspect_denoiser(kind, path / kind.name, folder.variant, {})
        # Whether the UNet is told gamma is of students; this may be a teacher.
        results += [result for result in found if not result.name.startswith("gamma")]
        if params is None or any(result.status == FAIL for result in results):
            return results, None
        pipeline, frozen, method = read_around(folder)
    # Whatever numbers that make no sense in a config.json lead to is a finding.
    except Exception as error:
        return [*results, Result(FAIL, "base", reason(error))], None
    facts = f"{' and '.join(frozen)}, all finite"
    return [*results, Result(OK, "other weights", facts)], Model(pipeline, frozen, params, method)


def _check_merged(
    folder: Folder, kind: Kind, model: Model, loras: Sequence[tuple[Path, float]], out: Path | None
) -> Iterator[Result]:
    """Prediction and samples of a model with its LoRAs in it."""
    where, network = folder.path.resolve() / kind.name, model.pipeline.network
    yield compare_with_torch(kind, where, folder.variant, network, model.params, loras)
    method = model.method
    facts = f"a teacher, guidance {TEACHER_GUIDANCE}"
    yield Result(OK, "drawn by", facts if method is None else method.title or method.name)
    try:
        yield from draw_samples(model.pipeline, model.frozen, model.params, method, out)
    # Whatever an impossible schedule makes of it is a finding.
    except Exception as error:
        yield Result(FAIL, "samples", reason(error))
