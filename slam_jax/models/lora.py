"""LoRA (Hu et al. 2021, arXiv 2106.09685): a low-rank change of some layers' weights.

    (1)  W' = W + (alpha / r) D U,   D: "lora_down" [..., in, r],  U: "lora_up" [..., r, out]

The adapters are nested params of their own, a pair of layers without biases in the place of each
layer that is changed; of a convolution D has its kernel size, and U is 1x1. The network's code does
not know of them: it is applied to W'. U is zero at first, which makes W' = W.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slam_jax.base.options import OptionError, check
from slam_jax.models.functional import Params, flatten, unflatten

Arrays = Array | np.ndarray
DOWN, UP = "lora_down", "lora_up"
# The layers of the published LCM-LoRA: linear, 1x1 and 3x3.
TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "time_emb_proj",
)


def layers_of(params: Params, targets: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Dotted path and kernel of each layer that is a target, or whose path ends in ".target"."""
    for path, leaf in flatten(params).items():
        layer, _, name = path.rpartition(".")
        if name == "kernel" and f".{layer}".endswith(tuple(f".{target}" for target in targets)):
            yield layer, leaf


def abstract_adapters(params: Params, rank: int, targets: Sequence[str] = TARGETS) -> Params:
    """Shapes of the adapters, as ShapeDtypeStructs.

    Args:
      params: arrays or shapes of a network.
      rank: r.
      targets: ends of the layers' dotted paths.

    Raises:
      OptionError: a target that no layer has and that is not one of TARGETS, of which a small
        network lacks some; or a rank that is larger than a layer.
    """
    found, used = {}, set()
    for layer, kernel in layers_of(params, targets):
        *around, inputs, outputs = kernel.shape
        most = min(math.prod(around) * inputs, outputs)
        if rank > most:
            raise OptionError("rank", rank, f"at most {most}, the largest that {layer} can have")
        used |= {target for target in targets if f".{layer}".endswith(f".{target}")}
        ones = [1] * len(around)
        found[f"{layer}.{DOWN}.kernel"] = jax.ShapeDtypeStruct((*around, inputs, rank), jnp.float32)
        found[f"{layer}.{UP}.kernel"] = jax.ShapeDtypeStruct((*ones, rank, outputs), jnp.float32)
    if unused := [target for target in targets if target not in {*used, *TARGETS}]:
        raise OptionError("targets", unused[0], "the end of a layer's path in the denoiser")
    if not found:
        raise OptionError("targets", tuple(targets), "one or more layers of the denoiser")
    return unflatten(found)


def init(params: Params, rank: int, targets: Sequence[str] = TARGETS, seed: int = 0) -> Params:
    """Adapters that change nothing yet: D uniform within 1 / sqrt(fan in), as peft draws it, and U
    zero. float32, the same on every host for the same seed."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path.endswith(f"{UP}.kernel"):
            return np.zeros(leaf.shape, np.float32)
        bound = 1 / math.sqrt(math.prod(leaf.shape[:-1]))
        return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)

    shapes = flatten(abstract_adapters(params, rank, targets))
    return unflatten({path: draw(path, leaf) for path, leaf in shapes.items()})


def scaled(adapters: Params, scale: float) -> Params:
    """Adapters that with alpha = r are what these are with alpha = scale r: U is multiplied."""
    leaves = flatten(adapters)
    return unflatten(
        {path: leaf * scale if UP in path.split(".") else leaf for path, leaf in leaves.items()}
    )


def merged(params: Params, adapters: Params, scale: float = 1.0) -> Params:
    """The weights W', equation (1), in the dtypes of W; summed in float32.

    Args:
      params: all weights of the network.
      adapters: of some of its layers.
      scale: alpha / r.
    """
    weights, changes = flatten(params), flatten(adapters)
    del params  # where nobody else holds W, a layer of it goes when its W' is there
    for path, down in changes.items():
        layer, _, name = path.rpartition(f".{DOWN}.")
        if name == "kernel":
            kernel = weights[f"{layer}.kernel"]
            change = scale * product(down, changes[f"{layer}.{UP}.kernel"])
            weights[f"{layer}.kernel"] = (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
    return unflatten(weights)


def extracted(
    before: Params, after: Params, rank: int, targets: Sequence[str] = TARGETS
) -> tuple[Params, float]:
    """The LoRA that is nearest to a change of weights, and the share of the change that it keeps.

    Layer by layer the first r singular values, which of all changes of rank r leave the smallest
    rest (Eckart and Young 1936).

    Args:
      before, after: arrays of one network, in the host's memory.
      rank: r.
      targets: ends of the layers' dotted paths.

    Returns:
      Adapters with alpha = r; and 1 - rest / change, sums of squares over all weights, those of
      other layers too.

    Raises:
      OptionError: as `abstract_adapters`.
    """
    check(rank >= 1, "rank", rank, "1 or more")
    abstract_adapters(before, rank, targets)
    old, new, found = flatten(before), flatten(after), {}
    change = sum(float(np.sum(np.square(new[path] - old[path]))) for path in old)
    kept = 0.0
    for layer, kernel in layers_of(before, targets):
        path = f"{layer}.kernel"
        delta = np.asarray(new[path], np.float32) - np.asarray(old[path], np.float32)
        *around, inputs, outputs = kernel.shape
        left, sizes, right = np.linalg.svd(delta.reshape(-1, outputs), full_matrices=False)
        roots = np.sqrt(sizes[:rank])
        found[f"{layer}.{DOWN}.kernel"] = (left[:, :rank] * roots).reshape(*around, inputs, rank)
        up = roots[:, None] * right[:rank]
        found[f"{layer}.{UP}.kernel"] = up.reshape(*[1] * len(around), rank, outputs)
        kept += float(np.sum(np.square(sizes[:rank])))
    return unflatten(found), kept / change if change else 1.0


def rank_of(adapters: Params) -> int:
    """The largest r among the layers."""
    leaves = flatten(adapters).items()
    return max(leaf.shape[-1] for path, leaf in leaves if DOWN in path.split("."))


def product(down: Arrays, up: Arrays) -> Arrays:
    """D U, shaped as the layer's kernel: [..., in, out], float32."""
    with jax.default_matmul_precision("highest"):
        return down.astype(np.float32) @ up.astype(np.float32).reshape(up.shape[-2:])
