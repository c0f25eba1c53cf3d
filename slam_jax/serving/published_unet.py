"""What can be said about a student's UNet alone: keys, shapes, dtypes, numbers, predictions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.config.validate import method_of
from slam_jax.families.latent_pipeline import TIME_IDS
from slam_jax.families.pipeline import Params
from slam_jax.families.stable_diffusion_folder import RECORD_FILE
from slam_jax.families.unet_pipeline import (
    GAMMA_EMBEDDING_DIM,
    abstract_params,
    gamma_norm,
    unet_function,
)
from slam_jax.formats import convert, safetensors, weight_files
from slam_jax.formats.diffusers_folder import Folder, read_config
from slam_jax.formats.model_index import STEMS
from slam_jax.method.method import Method
from slam_jax.method.schedule import gamma_embedding
from slam_jax.method.slam import Slam
from slam_jax.models import functional
from slam_jax.models.unet import UNetConfig
from slam_jax.serving import stock_pipeline

OK, FAIL, SKIPPED = "ok", "FAIL", "skipped"
TOLERANCE = 1e-4  # of the UNet's output, relative, against torch
LATENTS = 32  # largest edge of the random input for that
CONTEXT = 77  # tokens of it
LONGEST_REASON = 500  # characters


class Result(NamedTuple):
    """One line of the report."""

    status: str
    name: str
    facts: str


def reason(error: Exception) -> str:
    """What an exception says, in one line."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:LONGEST_REASON]


def inspect_unet(
    where: Path, variant: str, record: Mapping[str, Any]
) -> tuple[list[Result], UNetConfig | None, Params | None]:
    """Configuration and weights of the UNet.

    Args:
      where: folder with its config.json and weights.
      variant: of the weights.
      record: how the student was made, where that is known.

    Returns:
      Results, the configuration, and the parameters in float32; None for what cannot be read.
    """
    try:
        config = UNetConfig.from_dict(read_config(Folder(where.parent, str(where)), where.name))
        abstract = abstract_params(config)
    # Whatever numbers that make no sense lead to is a finding.
    except Exception as error:
        file = "" if isinstance(error, InputError) else f"{where / 'config.json'}: "
        return [Result(FAIL, "unet config", file + reason(error))], None, None
    results = [check_gamma_input(config, recorded_method(record))]
    try:
        path = weight_files.find(where, STEMS["unet"], variant)
        arrays = safetensors.open_arrays(path)
    except InputError as error:
        return [*results, Result(FAIL, "unet weights", str(error))], config, None
    try:
        params, missing, extra = convert.from_torch(arrays, abstract)
    except InputError as error:
        return [*results, Result(FAIL, "unet weights", str(error))], config, None
    except ValueError as error:  # a wrong shape, and no word of the keys
        _, expected, _ = convert.from_torch({}, abstract)
        missing, extra = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
        results += [
            _check_keys(len(arrays), missing, extra),
            Result(FAIL, "unet shapes", f"{error}"),
        ]
        return results, config, None
    count = functional.count_params(params)
    results += [
        _check_keys(len(arrays), missing, extra),
        Result(OK, "unet shapes", f"{count / 1e6:,.1f} million numbers, as config.json says"),
        *_check_numbers(arrays),
    ]
    if config.time_cond_proj_dim is not None and not missing:
        results.append(_check_projection(params))
    return results, config, params if not missing else None


def recorded_method(record: Mapping[str, Any]) -> Method | None:
    """How a student was distilled; None where its record does not say, or nothing that is known."""
    try:
        return method_of(record, Path(RECORD_FILE))
    except InputError:
        return None


def check_gamma_input(config: UNetConfig, method: Method | None) -> Result:
    """Whether the UNet is told gamma (LCM: the guidance) beside the time."""
    dim, name = config.time_cond_proj_dim, "gamma input"
    if dim == GAMMA_EMBEDDING_DIM:
        return Result(OK, name, f"time_cond_proj_dim = {dim}")
    if dim is None and method is not None and not method.tells_gamma:
        how = "conditioning = 'snr'" if isinstance(method, Slam) else method.title or method.name
        return Result(OK, name, f"none, as this student was distilled with {how}")
    return Result(
        FAIL,
        name,
        f"time_cond_proj_dim = {dim}, expected {GAMMA_EMBEDDING_DIM} in a student's config.json",
    )


def _check_keys(count: int, missing: list[str], extra: list[str]) -> Result:
    wrong = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in (("missing", missing), ("not expected", extra))
        if keys
    ]
    if wrong:
        return Result(FAIL, "unet keys", f"{', '.join(wrong)}; config.json asks for others")
    return Result(OK, "unet keys", f"{count}, as config.json says")


def _check_numbers(arrays: Mapping[str, np.ndarray]) -> Iterator[Result]:
    """Dtypes, and whether all is finite."""
    dtypes, not_finite = Counter(), []
    for key, array in arrays.items():
        dtypes[str(array.dtype)] += 1
        if not np.isfinite(array.astype(np.float32, copy=False)).all():
            not_finite.append(key)
    yield Result(OK, "unet dtypes", ", ".join(f"{n} of {dtype}" for dtype, n in dtypes.items()))
    if not_finite:
        facts = f"{len(not_finite)} arrays have NaN or infinity, first {not_finite[0]}"
        yield Result(FAIL, "unet finite", facts)
    else:
        yield Result(OK, "unet finite", f"all {len(arrays)} arrays")


def _check_projection(params: Params) -> Result:
    norm = gamma_norm(params)
    facts = f"norm of gamma's projection = {norm:.4g}"
    if norm == 0:
        return Result(FAIL, "gamma weights", f"{facts}: they were never trained")
    return Result(OK, "gamma weights", facts)


def compare_with_torch(
    where: Path,
    variant: str,
    config: UNetConfig,
    params: Params,
    loras: Sequence[tuple[Path, float]] = (),
) -> Result:
    """One prediction for random inputs, here and by diffusers.

    Args:
      where: folder of the UNet.
      variant: of its weights.
      config: its configuration.
      params: what it computes with here.
      loras: files that are in `params` already, and how much of each.
    """
    name = "prediction"
    if missing := stock_pipeline.missing_libraries(*(["peft"] if loras else [])):
        return Result(SKIPPED, name, f"no {' and no '.join(missing)}")
    inputs = _random_inputs(config)
    try:
        unet, wrong = stock_pipeline.load_unet(where, variant)
        if loras:
            stock_pipeline.add_loras(unet, loras)
        expected = stock_pipeline.unet_output(unet, inputs)
    # Whatever a broken file makes of it there, it is a finding.
    except Exception as error:
        return Result(FAIL, name, f"diffusers: {reason(error)}")
    if wrong:
        return Result(FAIL, name, f"diffusers: keys missing or not expected, first {wrong[0]}")
    # Accelerators multiply float32 in lower precision unless told otherwise.
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(unet_function(config))
        output = np.asarray(apply(params, **inputs))
    error = float(np.abs(output - expected).max() / np.abs(expected).max())
    status = OK if error <= TOLERANCE else FAIL  # and NaN fails
    return Result(status, name, f"of random inputs: relative difference from torch's {error:.1e}")


def _random_inputs(config: UNetConfig) -> dict[str, Any]:
    """Arguments for the UNet: two latents, times in the middle and at the end."""
    rng, edge = np.random.default_rng(0), min(config.sample_size or LATENTS, LATENTS)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    added, dim = None, config.addition_time_embed_dim
    if dim is not None:
        pooled = (config.projection_class_embeddings_input_dim or 0) - TIME_IDS * dim
        ids = np.tile(np.array([8 * edge, 8 * edge, 0, 0, 8 * edge, 8 * edge], np.float32), (2, 1))
        added = {"text_embeds": normal(2, pooled), "time_ids": ids}
    gamma, features = np.array([0.35, 1], np.float32), config.time_cond_proj_dim
    return {
        "sample": normal(2, edge, edge, config.in_channels),
        "timesteps": np.array([499, 999], np.float32),
        "encoder_hidden_states": normal(2, CONTEXT, config.cross_attention_dim),
        "timestep_cond": features and np.asarray(gamma_embedding(jnp.asarray(gamma), features)),
        "added_cond": added,
    }
