"""Where arrays live: the device mesh, the rules that split the state over it, and the transfers.

Nothing else in the project knows of devices. A batch is split over both axes of the mesh. The
state and the frozen networks are split over "fsdp" and repeated along "data" (fully sharded data
parallelism: Rajbhandari et al. 2020, ZeRO stage 3). Arrays are made whole where they are used; the
student's stay so from its forward to its backward pass, unless they are gathered again in there.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from slam_jax.base.options import check

AXES = ("data", "fsdp")
AnyMesh = Mesh | AbstractMesh  # of devices, or of so many that are not here

# (pattern that is searched in an array's dotted path, what to do with it). The first that fits
# decides: "split" is along the last axis but one, a kernel's inputs, if fsdp divides it; else along
# the longest that it divides; an array without such an axis is repeated. (A TPU has 128 numbers of
# the last axis side by side: parts of 160 would not be whole tiles, and XLA would send the whole
# gradients of convolutions to all devices.)
RULES = (
    (r"\b(bias|scale)$", "repeat"),  # a thousandth of a UNet, in half of its arrays
    (r"", "split"),
)


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes "data" and "fsdp" over all devices, in the order of their processes; so the
    rows of a batch that a process holds are one behind the other.

    Args:
      data: -1 takes the devices that fsdp leaves.
      fsdp: neighbours, over which state is split.
      devices: if not all.

    Raises:
      OptionError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1 and fsdp > 0:
        data = count // fsdp
        check(data * fsdp == count, "mesh.fsdp", fsdp, f"a divisor of the {count} devices")
    fits = data > 0 and fsdp > 0 and data * fsdp == count
    check(fits, "mesh.data", data, f"the {count} devices divided by fsdp = {fsdp}, or -1")
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(data, fsdp), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def specs_of(tree: Any, mesh: AnyMesh, rules: Sequence[tuple[str, str]] = RULES) -> Any:
    """How each array of a tree is split.

    Args:
      tree: state, weights, or ShapeDtypeStructs of them.
      mesh: of `make_mesh`.
      rules: as RULES.

    Returns:
      The same tree with a PartitionSpec in the place of each array.

    Raises:
      ValueError: a rule does what is not known.
    """
    size = mesh.shape["fsdp"]

    def spec(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        action = next(action for pattern, action in rules if re.search(pattern, name))
        if action not in ("split", "repeat"):
            raise ValueError(f"a sharding rule for {name} is {action!r}, expected split or repeat")
        inputs = len(leaf.shape) - 2
        found = [(axis == inputs, n, axis) for axis, n in enumerate(leaf.shape) if n % size == 0]
        if size == 1 or action == "repeat" or not found:
            return PartitionSpec()
        *_, axis = max(found)
        return PartitionSpec(*[None] * axis, "fsdp")

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings_of(tree: Any, mesh: AnyMesh) -> Any:
    """Where each array of a tree lives, by RULES: NamedShardings in the places of the arrays."""
    return jax.tree.map(partial(NamedSharding, mesh), specs_of(tree, mesh))


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes of arrays that live where the shardings say, from arrays or shapes."""

    def shape(leaf, where):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(shape, tree, shardings)


def shard(tree: Any, mesh: Mesh) -> Any:
    """Arrays of the host, the same in every process, as global arrays split by RULES; a device is
    sent nothing but its part."""

    def place(array, sharding):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    return jax.tree.map(place, tree, shardings_of(tree, mesh))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Global arrays, however they are split, with every device holding all of them."""
    return jax.device_put(tree, replicated(mesh))


def to_host(tree: Any, mesh: Mesh) -> Any:
    """The same as numpy arrays in every process; one array at a time is whole on the devices."""
    return jax.tree.map(lambda array: np.asarray(replicate(array, mesh)), tree)


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch, as global arrays split over the devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def rows_here(batch: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """What `shard_batch` was given."""

    def rows(array):
        shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate([shards[start] for start in sorted(shards)])

    return {name: rows(array) for name, array in batch.items()}


def by_rows(function: Callable, mesh: Mesh) -> Callable:
    """(arrays that are whole everywhere, rows split over the devices) -> rows, compiled. Each
    device computes its own: XLA cannot split what a kernel computes.

    Args:
      function: of any rows; each of its results has a row for each.
      mesh: devices.
    """
    rows = PartitionSpec(AXES)
    spread = jax.shard_map(
        function, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False
    )
    return jax.jit(spread)


# What follows is called inside jax.shard_map, where each device sees its own parts.


def rows_of_device(batch_size: int) -> Int[Array, " B_device"]:
    """Which rows of a batch this device has."""
    count = batch_size // jax.lax.axis_size(AXES)
    return jax.lax.axis_index(AXES) * count + jnp.arange(count)


def gather(tree: Any, specs: Any, dtype: str | None = None) -> Any:
    """The whole arrays in `dtype`, from the parts that the devices hold; None leaves them as they
    are.

    The gradient of a whole array, which differs from device to device, is summed over "fsdp" and
    split again: in the dtype of the parts, while what is gathered travels in `dtype`.
    """
    return jax.tree.map(lambda part, spec: _gather(part, spec, dtype or part.dtype), tree, specs)


def _gather(array: Array, spec: PartitionSpec, dtype: str) -> Array:
    if "fsdp" not in spec:
        return array.astype(dtype)
    axis = spec.index("fsdp")

    def whole(part):
        return jax.lax.all_gather(part.astype(dtype), "fsdp", axis=axis, tiled=True)

    def scatter(_, gradient):
        gradient = gradient.astype(array.dtype)
        return (jax.lax.psum_scatter(gradient, "fsdp", scatter_dimension=axis, tiled=True),)

    gathered = jax.custom_vjp(whole)
    gathered.defvjp(lambda part: (whole(part), None), scatter)
    return gathered(array)


def gathered_grad(
    function: Callable, parts: Any, specs: Any, dtype: str | None = None, again: bool = False
) -> tuple[Any, Any]:
    """As jax.grad(has_aux=True) of a function of what `gather` makes of the parts.

    Args:
      function: whole arrays -> (a number, what else it returns).
      parts, specs, dtype: as for `gather`.
      again: whether the backward pass gathers the parts again, each near its use, in place of
        keeping them whole. What else it keeps and what it computes again stays the same; a
        jax.checkpoint around the function would decide that for those inside of it.

    Returns:
      The gradient with respect to the parts, and what else the function returned.
    """
    whole, to_parts = jax.vjp(lambda parts: gather(parts, specs, dtype), parts)
    total, backward, others = jax.vjp(function, whole, has_aux=True)
    if again:
        # Behind a barrier, or XLA would see that they are the same arrays, and keep these.
        parts, _ = jax.lax.optimization_barrier((parts, total))
        late = gather(parts, specs, dtype)
        late = dict(zip(map(id, jax.tree.leaves(whole)), jax.tree.leaves(late), strict=True))
        backward = jax.tree.map(lambda kept: late.get(id(kept), kept), backward)
    (gradient,) = to_parts(*backward(jnp.ones_like(total)))
    return gradient, others


def sum_gradients(tree: Any, specs: Any) -> Any:
    """Gradients with respect to the parts that `gather` was given, summed over all devices."""

    def total(gradient, spec):
        # Over one device, too: there XLA for TPUs keeps 1.2 GiB more of SD 1.5 without this sum.
        return jax.lax.psum(gradient, tuple(axis for axis in AXES if axis not in spec))

    return jax.tree.map(total, tree, specs)
