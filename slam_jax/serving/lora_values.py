"""What a LoRA file changes of a model, and by how much: ranks, alpha, layers."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from slam_jax.base.errors import InputError
from slam_jax.families.pipeline import DENOISER
from slam_jax.formats.lora_header import Header, finite_number
from slam_jax.formats.lora_keys import ALPHA, Placed
from slam_jax.formats.safetensors import LazyArrays
from slam_jax.models.lora import DOWN, TARGETS, UP
from slam_jax.serving.published_denoiser import FAIL, OK, Result

NAMED = 3  # keys or layers that a line names


def some(names: Collection[str]) -> str:
    """The first few."""
    return ", ".join([*list(names)[:NAMED], *(["..."] if len(names) > NAMED else [])])


def span(values: Iterable[float]) -> str:
    """One number, or from where to where."""
    low, *more = sorted({f"{value:.4g}": value for value in values}.values())
    return f"{low:.4g}" if not more else f"{low:.4g} to {more[-1]:.4g}"


def check_values(
    placed: Placed, arrays: LazyArrays, header: Header, denoiser: str
) -> Iterator[Result]:
    """Ranks, alpha and which layers are changed.

    Args:
      placed: pairs that have a layer.
      arrays: of the file.
      header: of the file.
      denoiser: "UNet" or "transformer".
    """
    shapes = arrays.shapes()
    ranks = {
        place: shapes[sides[DOWN]][0]
        for place, sides in placed.pairs.items()
        if {DOWN, UP} <= sides.keys() and shapes[sides[DOWN]]
    }
    if not ranks:
        return
    yield Result(OK, "lora ranks", span(ranks.values()))
    yield _check_alpha(placed, ranks, arrays, header)
    yield Result(OK, "lora targets", _targets(ranks, denoiser))


def _check_alpha(
    placed: Placed, ranks: Mapping[tuple[str, str], int], arrays: LazyArrays, header: Header
) -> Result:
    """alpha, where it stands, and what the pairs are multiplied by."""
    places, alphas, scales, unseen = Counter(), [], [], False
    try:
        for (part, layer), rank in ranks.items():
            sides = placed.pairs[part, layer]
            if ALPHA in sides:
                alpha = finite_number(header.path, sides[ALPHA], arrays[sides[ALPHA]])
                place = "beside the pairs"
            else:
                alpha, said = header.alpha(part, layer, rank)
                place = f"in {header.place}" if said else "nowhere, which means the rank"
                unseen |= said and alpha != rank
            places[place] += 1
            alphas.append(alpha)
            scales.append(alpha / rank if rank else float("nan"))
    except InputError as error:
        return Result(FAIL, "lora alpha", str(error))
    where = [f"{place} ({count})" for place, count in places.items()]
    where = next(iter(places)) if len(places) == 1 else " and ".join(where)
    facts = f"{span(alphas)}, {where}; alpha / rank = {span(scales)}"
    if unseen:
        facts += "; ComfyUI does not read it there and takes the rank"
    return Result(OK, "lora alpha", facts)


def _targets(places: Collection[tuple[str, str]], denoiser: str) -> str:
    """Which layers are changed, in words; of a UNet's, how many kinds of LCM-LoRA's."""
    found = [layer for part, layer in places if part == DENOISER]
    words = _kinds(found) if denoiser == "UNet" else []
    if found and not words:
        words.append(f"{len(found)} layers of the {denoiser}")
    counts = Counter(part for part, _ in places if part != DENOISER)
    return "; ".join([*words, *(f"{n} layers of {part}" for part, n in counts.items())])


def _kinds(unet: Collection[str]) -> list[str]:
    """Layers of a UNet, those of LCM-LoRA's kinds and the others, in words."""
    kinds = {layer: [t for t in TARGETS if f".{layer}".endswith(f".{t}")] for layer in unet}
    found = [target for target in TARGETS if any(target in kind for kind in kinds.values())]
    others = [layer for layer, kind in kinds.items() if not kind]
    words = []
    if found:
        every, few = f"all {len(found)}", f"{len(found)} ({', '.join(found)})"
        kinds_in = f"{every if len(found) == len(TARGETS) else few} of LCM-LoRA's {len(TARGETS)}"
        words.append(f"{len(unet) - len(others)} layers of the UNet, {kinds_in} kinds")
    if others:
        words.append(f"{len(others)} others of the UNet ({some(others)})")
    return words
