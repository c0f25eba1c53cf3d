"""What can be said about a LoRA file: which model it is for, what it changes, is it whole?"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.families.stable_diffusion_lora import method_beside
from slam_jax.formats import lora_keys
from slam_jax.formats.diffusers_folder import Folder
from slam_jax.formats.lora_header import read_header
from slam_jax.formats.lora_keys import Placed, Shapes, pair_problem
from slam_jax.formats.lora_names import Names
from slam_jax.formats.safetensors import LazyArrays, open_arrays
from slam_jax.models.lora import DOWN, UP
from slam_jax.models.published_networks import TRANSFORMERS, UNETS, Layers, published_layers
from slam_jax.serving.lora_values import check_values, some
from slam_jax.serving.published_denoiser import FAIL, OK, SKIPPED, Result
from slam_jax.serving.published_scheduler import check_scheduler


class Base(NamedTuple):
    """A model that a file may be for.

    Attributes:
      name: in words.
      layers: of its parts.
      names: what files call them.
      denoiser: what it is, in words.
    """

    name: str
    layers: Layers
    names: Names
    denoiser: str = "UNet"


@dataclass(frozen=True)
class _Fit:
    """A file on a model.

    Attributes:
      base: the model.
      placed: which layers its pairs are of.
      problems: of pairs that have a layer, and not its shape.
      count: of pairs that fit.
    """

    base: Base
    placed: Placed
    problems: list[str]
    count: int


def published_bases(guess: str) -> Iterator[Base]:
    """SD 1.5, SD 2.x, SDXL, SD 3 and SD 3.5, each made when it is asked for: it takes seconds.

    Args:
      guess: from `base_of`; where it names one or two of them, they are all.
    """
    names = (*UNETS, *TRANSFORMERS)
    for name in [name for name in names if name[:4] == guess[:4]] or names:
        yield _published_base(name)


@cache
def _published_base(name: str) -> Base:
    layers = published_layers(name)
    if name in TRANSFORMERS:
        return Base(name, layers, Names(layers, None), "transformer")
    return Base(name, layers, Names(layers, UNETS[name].layers_per_block))


def check_lora(
    path: Path, bases: Callable[[str], Iterable[Base]], allow_unused: bool
) -> Iterator[Result]:
    """All checks of a file, each as soon as it is done.

    Args:
      path: of the file.
      bases: what it looks like -> models that it may be for.
      allow_unused: whether keys that no layer has are passed over.
    """
    try:
        arrays, header = open_arrays(path), read_header(path)
    except InputError as error:
        yield Result(FAIL, "lora file", str(error))
        return
    shapes = arrays.shapes()
    yield Result(OK, "lora file", f"{path.name}, {len(arrays)} arrays")
    try:
        split = lora_keys.split_keys(path, shapes)
        pairs = _pairs_of(split)
        if not pairs:
            raise InputError(f"{path}: nothing in it; expected a LoRA")
    except InputError as error:
        yield Result(FAIL, "lora layout", str(error))
        return
    yield Result(OK, "lora layout", lora_keys.layout_of(shapes))
    whole = [sides for sides in pairs.values() if {DOWN, UP} <= sides.keys()]
    try:
        fits = [_fit(path, split, shapes, base) for base in bases(lora_keys.base_of(shapes))]
    except InputError as error:
        yield Result(FAIL, "lora keys", str(error))
        return
    fit = max(fits, key=lambda fit: (fit.count, len(fit.placed.pairs)))
    yield _check_base(fits, fit, len(whole))
    yield _check_keys(fit.placed, allow_unused)
    if fit.placed.pairs:
        yield _check_pairs(fit.placed)
        yield _check_shapes(fit, shapes)
        yield from check_values(fit.placed, arrays, header, fit.base.denoiser)
    else:
        yield Result(SKIPPED, "lora pairs", "no key is of a layer")
    yield from _check_numbers(arrays, {sides[UP] for sides in whole})
    yield from _check_beside(path)


def _pairs_of(split: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    """What the file calls a layer -> its keys."""
    pairs: dict[str, dict[str, str]] = {}
    for key, (name, side) in split.items():
        pairs.setdefault(name, {})[side] = key
    return pairs


def _fit(path: Path, split: Mapping[str, tuple[str, str]], shapes: Shapes, base: Base) -> _Fit:
    """Compares keys and shapes with a model's layers.

    Raises:
      InputError: two keys mean the same.
    """
    placed = lora_keys.place_keys(path, split, base.names)
    found = [
        pair_problem(sides, shapes, base.layers[part][layer], base.name)
        for (part, layer), sides in placed.pairs.items()
        if {DOWN, UP} <= sides.keys()
    ]
    return _Fit(base, placed, [problem for problem in found if problem], found.count(""))


def _check_base(fits: list[_Fit], best: _Fit, total: int) -> Result:
    """For which of the models the file is: more than half of its pairs fit."""
    names = [fit.base.name for fit in fits if fit.count == best.count]
    if 2 * best.count > total:
        return Result(
            OK, "lora base", f"for {' or '.join(names)}: {best.count} of {total} pairs fit"
        )
    why = best.problems[0] if best.problems else f"no layer for {some(best.placed.unused)}"
    if total == 0:
        why = "each pair lacks a side"
    every = " or ".join(fit.base.name for fit in fits)
    return Result(FAIL, "lora base", f"not for {every}: {best.count} of {total} pairs fit; {why}")


def _check_keys(placed: Placed, allow_unused: bool) -> Result:
    if not placed.unused:
        return Result(OK, "lora keys", "each is of a layer")
    facts = f"{len(placed.unused)} are of no layer ({some(placed.unused)})"
    if allow_unused:
        return Result(OK, "lora keys", f"{facts}; passed over")
    return Result(FAIL, "lora keys", f"{facts}; --allow-unused passes them over")


def _check_pairs(placed: Placed) -> Result:
    missing = [
        f"{layer} has no {side}"
        for (_, layer), sides in placed.pairs.items()
        for side in (DOWN, UP)
        if side not in sides
    ]
    if missing:
        return Result(FAIL, "lora pairs", f"{len(missing)} incomplete: {some(missing)}")
    return Result(OK, "lora pairs", f"{len(placed.pairs)}, all complete")


def _check_shapes(fit: _Fit, shapes: Shapes) -> Result:
    if fit.problems:
        facts = f"{len(fit.problems)} pairs do not fit, first {fit.problems[0]}"
        return Result(FAIL, "lora shapes", facts)
    keys = [
        sides[side] for sides in fit.placed.pairs.values() for side in (DOWN, UP) if side in sides
    ]
    count = sum(prod(shapes[key]) for key in keys)
    return Result(OK, "lora shapes", f"{count / 1e6:,.2f} million numbers, as {fit.base.name}'s")


def _check_numbers(arrays: LazyArrays, ups: Collection[str]) -> Iterator[Result]:
    """Dtypes, whether all is finite, and whether the file was trained.

    Args:
      arrays: all there are.
      ups: keys of those that are zero before the first step.
    """
    dtypes, not_finite, zero = Counter(), [], []
    for key, array in arrays.items():
        dtypes[str(array.dtype)] += 1
        if not np.isfinite(array.astype(np.float32, copy=False)).all():
            not_finite.append(key)
        if key in ups and not array.any():
            zero.append(key)
    yield Result(OK, "lora dtypes", ", ".join(f"{n} of {dtype}" for dtype, n in dtypes.items()))
    if not_finite:
        facts = f"{len(not_finite)} arrays have NaN or infinity, first {not_finite[0]}"
        yield Result(FAIL, "lora finite", facts)
    else:
        yield Result(OK, "lora finite", f"all {len(arrays)} arrays")
    if ups and len(zero) == len(ups):
        facts = "B (lora_up) is zero in each pair: it was never trained and changes nothing"
        yield Result(FAIL, "lora trained", facts)
    else:
        facts = f"B is zero in {len(zero)} of {len(ups)} pairs ({some(zero)})"
        yield Result(OK, "lora trained", facts if zero else "B is zero in no pair")


def _check_beside(path: Path) -> Iterator[Result]:
    """The record of a student, and its scheduler."""
    method = None
    try:
        method = method_beside(path)
        facts = "no slam.json beside it: taken for a style, not for few steps"
        yield Result(OK, "lora method", facts if method is None else method.title or method.name)
    except InputError as error:
        yield Result(FAIL, "lora method", str(error))
    if (path.parent / "scheduler").is_dir():
        result = check_scheduler(Folder(path.parent, str(path.parent)), method)
        yield result._replace(name="lora scheduler")
