"""Modules as pure functions of plain nested dicts.

Parameters travel as nested dicts with string keys all the way (list indices too), so that
optimizers, checkpoints and safetensors take them as they are. A module object exists only while
tracing:

    params = init(UNet2DConditionModel, config, key)
    apply = apply_fn(UNet2DConditionModel, config)
    prediction = apply(params, sample, timesteps, context)
    images = apply_fn(AutoencoderKL, vae_config, "decode")(vae_params, latents)
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util

from slam_jax.base.tree import MISSING, differences
from slam_jax.models.execution import Execution

Params = dict[str, Any]


@functools.cache
def _abstract(
    module_class: Callable[..., nnx.Module], config: Any, execution: Execution
) -> tuple[nnx.GraphDef, Params]:
    """Structure and abstract parameters of `module_class(config, rngs=...)`."""
    # Values do not matter here, and tracing the counters of nnx.Rngs takes 10 s for SD 1.5.
    rngs = SimpleNamespace(params=lambda: jax.random.key(0))
    module = nnx.eval_shape(lambda: module_class(config, rngs=rngs))
    module.set_attributes(execution=execution, raise_if_not_found=False)
    graph, state = nnx.split(module)
    return graph, _with_string_keys(nnx.to_pure_dict(state))


def _with_string_keys(tree):
    if not isinstance(tree, Mapping):
        return tree
    return {str(key): _with_string_keys(value) for key, value in tree.items()}


def abstract_params(module_class: type[nnx.Module], config: Any) -> Params:
    """The nested dict of parameters with ShapeDtypeStruct leaves; allocates nothing."""
    return jax.tree.map(lambda leaf: leaf, _abstract(module_class, config, Execution())[1])


def init(module_class: type[nnx.Module], config: Any, key: jax.Array) -> Params:
    """Fresh float32 parameters, the same on every host for the same key.

    Scales are one, biases zero, `cond_proj` is zero so that a pretrained network gains its input
    unchanged, what a class names in `constants` is that, and all else is LeCun-normal. Drawn by
    numpy, because XLA compiles a second per array shape for its random numbers: a minute for the
    smallest UNet.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    constants = getattr(module_class, "constants", lambda config: {})(config)

    def draw(path, leaf):
        names = [entry.key for entry in path]
        if (constant := constants.get(".".join(names))) is not None:
            return constant
        if names[-1] == "scale":
            return np.ones(leaf.shape, leaf.dtype)
        if names[-1] == "bias" or "cond_proj" in names:
            return np.zeros(leaf.shape, leaf.dtype)
        fan_in = math.prod(leaf.shape[:-1])
        return rng.standard_normal(leaf.shape, np.float32) / np.float32(math.sqrt(fan_in))

    return jax.device_put(
        jax.tree_util.tree_map_with_path(draw, abstract_params(module_class, config))
    )


def apply_fn(
    module_class: type[nnx.Module],
    config: Any,
    method: str = "__call__",
    execution: Execution = Execution(),
) -> Callable[..., Any]:
    """A method of the module as a pure function `apply(params, *args, **kwargs)`.

    Args:
        module_class: built as `module_class(config, rngs=...)`.
        config: hashable.
        method: its name.
        execution: how the layers compute.

    Raises:
        ValueError: from `apply`, when `params` are not those of the module.
    """
    graph, expected = _abstract(module_class, config, execution)

    def apply(params: Params, *args, **kwargs):
        if difference := first_difference(expected, params):
            raise ValueError(f"{module_class.__name__}: wrong parameters: {difference}")
        # NNX fills lists in the order of their sorted indices, and as strings "10" < "2".
        module = nnx.merge(graph, nnx.restore_int_paths(params))
        return getattr(module, method)(*args, **kwargs)

    return apply


def first_difference(expected: Any, actual: Any) -> str | None:
    """The first place where two nested dicts differ in keys or shapes, in words; None if nowhere.

    Args:
        expected, actual: nested mappings with leaves that have `.shape`.
    """
    found = next(differences(expected, actual, lambda a, b: tuple(a.shape) == tuple(b.shape)), None)
    if found is None:
        return None
    path, wanted, there = found
    if there is MISSING:
        return f"{path} is missing"
    if wanted is MISSING:
        return f"{path} is not expected"
    if isinstance(wanted, Mapping) or isinstance(there, Mapping):
        return f"{path} is one array in one tree and a group of arrays in the other"
    return f"{path} has shape {tuple(there.shape)}, expected {tuple(wanted.shape)}"


def flatten(params: Params) -> dict[str, Any]:
    """Nested params as a flat dict, keys joined by dots."""
    return traverse_util.flatten_dict(params, sep=".")


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep=".")


def cast(params: Params, dtype: Any) -> Params:
    """The params in another floating dtype, in which the networks then compute."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def fingerprint(params: Params) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of all arrays."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()


def count_params(params: Params) -> int:
    """Total number of elements in a tree of arrays (or of ShapeDtypeStructs)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
