"""What can be said about a student's denoiser alone: keys, shapes, dtypes, numbers, predictions."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from slam_jax.base.errors import InputError
from slam_jax.config.validate import method_of
from slam_jax.families.pipeline import Params
from slam_jax.families.stable_diffusion_folder import RECORD_FILE
from slam_jax.formats import convert, safetensors, weight_files
from slam_jax.formats.diffusers_folder import Folder, read_config
from slam_jax.formats.model_index import STEMS
from slam_jax.method.method import Method
from slam_jax.models import functional
from slam_jax.serving import stock_networks, stock_pipeline

OK, FAIL, SKIPPED = "ok", "FAIL", "skipped"
TOLERANCE = 1e-4  # of the denoiser's output, relative, against torch
LATENTS = 32  # largest edge of the random input for that
LONGEST_REASON = 500  # characters


class Result(NamedTuple):
    """One line of the report."""

    status: str
    name: str
    facts: str


@dataclass(frozen=True)
class Kind:
    """A kind of denoiser.

    Attributes:
      name: of its folder, "unet" or "transformer"; lines of the report begin with it.
      words: what it is called in a sentence.
      stock: its class in diffusers.
      parse: contents of config.json -> configuration.
      abstract: configuration -> shapes of its weights.
      function: configuration -> (params, **inputs) -> output.
      inputs: configuration -> arguments for `function` that are random, numpy.
      stock_output: (network of diffusers, the same arguments) -> output.
      check_config: (configuration, how the student was distilled) -> results.
      check_params: (configuration, weights) -> results.
    """

    name: str
    words: str
    stock: str
    parse: Callable[[dict[str, Any]], Any]
    abstract: Callable[[Any], Params]
    function: Callable[[Any], Callable[..., Any]]
    inputs: Callable[[Any], dict[str, Any]]
    stock_output: Callable[[Any, dict[str, Any]], Float[np.ndarray, "B H W C"]]
    check_config: Callable[[Any, Method | None], Iterable[Result]] = lambda config, method: ()
    check_params: Callable[[Any, Params], Iterable[Result]] = lambda config, params: ()


def reason(error: Exception) -> str:
    """What an exception says, in one line."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:LONGEST_REASON]


def recorded_method(record: Mapping[str, Any]) -> Method | None:
    """How a student was distilled; None where its record does not say, or nothing that is known."""
    try:
        return method_of(record, Path(RECORD_FILE))
    except InputError:
        return None


def inspect_denoiser(
    kind: Kind, where: Path, variant: str, record: Mapping[str, Any]
) -> tuple[list[Result], Any, Params | None]:
    """Configuration and weights.

    Args:
      kind: of the denoiser.
      where: folder with its config.json and weights.
      variant: of the weights.
      record: how the student was made, where that is known.

    Returns:
      Results, the configuration, and the parameters in float32; None for what cannot be read.
    """
    name = kind.name
    try:
        config = kind.parse(read_config(Folder(where.parent, str(where)), where.name))
        abstract = kind.abstract(config)
    # Whatever numbers that make no sense lead to is a finding.
    except Exception as error:
        file = "" if isinstance(error, InputError) else f"{where / 'config.json'}: "
        return [Result(FAIL, f"{name} config", file + reason(error))], None, None
    results = [*kind.check_config(config, recorded_method(record))]
    try:
        path = weight_files.find(where, STEMS[name], variant)
        arrays = safetensors.open_arrays(path)
    except InputError as error:
        return [*results, Result(FAIL, f"{name} weights", str(error))], config, None
    try:
        params, missing, extra = convert.from_torch(arrays, abstract)
    except InputError as error:
        return [*results, Result(FAIL, f"{name} weights", str(error))], config, None
    except ValueError as error:  # a wrong shape, and no word of the keys
        _, expected, _ = convert.from_torch({}, abstract)
        missing, extra = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
        results += [
            _check_keys(name, len(arrays), missing, extra),
            Result(FAIL, f"{name} shapes", f"{error}"),
        ]
        return results, config, None
    count = functional.count_params(params)
    results += [
        _check_keys(name, len(arrays), missing, extra),
        Result(OK, f"{name} shapes", f"{count / 1e6:,.1f} million numbers, as config.json says"),
        *_check_numbers(name, arrays),
    ]
    if not missing:
        results += kind.check_params(config, params)
    return results, config, params if not missing else None


def _check_keys(name: str, count: int, missing: list[str], extra: list[str]) -> Result:
    wrong = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in (("missing", missing), ("not expected", extra))
        if keys
    ]
    if wrong:
        return Result(FAIL, f"{name} keys", f"{', '.join(wrong)}; config.json asks for others")
    return Result(OK, f"{name} keys", f"{count}, as config.json says")


def _check_numbers(name: str, arrays: Mapping[str, np.ndarray]) -> Iterator[Result]:
    """Dtypes, and whether all is finite."""
    dtypes, not_finite = Counter(), []
    for key, array in arrays.items():
        dtypes[str(array.dtype)] += 1
        if not np.isfinite(array.astype(np.float32, copy=False)).all():
            not_finite.append(key)
    yield Result(OK, f"{name} dtypes", ", ".join(f"{n} of {dtype}" for dtype, n in dtypes.items()))
    if not_finite:
        facts = f"{len(not_finite)} arrays have NaN or infinity, first {not_finite[0]}"
        yield Result(FAIL, f"{name} finite", facts)
    else:
        yield Result(OK, f"{name} finite", f"all {len(arrays)} arrays")


def compare_with_torch(
    kind: Kind,
    where: Path,
    variant: str,
    config: Any,
    params: Params,
    loras: Sequence[tuple[Path, float]] = (),
) -> Result:
    """One prediction for random inputs, here and by diffusers.

    Args:
      kind: of the denoiser.
      where: its folder.
      variant: of its weights.
      config: its configuration.
      params: what it computes with here.
      loras: files that are in `params` already, and how much of each.
    """
    name = "prediction"
    if missing := stock_pipeline.missing_libraries(*(["peft"] if loras else [])):
        return Result(SKIPPED, name, f"no {' and no '.join(missing)}")
    inputs = kind.inputs(config)
    try:
        network, wrong = stock_networks.load_network(kind.stock, where, variant)
        if loras:
            stock_networks.add_loras(network, loras)
        expected = kind.stock_output(network, inputs)
    # Whatever a broken file makes of it there, it is a finding.
    except Exception as error:
        return Result(FAIL, name, f"diffusers: {reason(error)}")
    if wrong:
        return Result(FAIL, name, f"diffusers: keys missing or not expected, first {wrong[0]}")
    # Accelerators multiply float32 in lower precision unless told otherwise.
    with jax.default_matmul_precision("highest"):
        output = np.asarray(jax.jit(kind.function(config))(params, **inputs))
    error = float(np.abs(output - expected).max() / np.abs(expected).max())
    status = OK if error <= TOLERANCE else FAIL  # and NaN fails
    return Result(status, name, f"of random inputs: relative difference from torch's {error:.1e}")
