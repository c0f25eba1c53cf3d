"""Where arrays live: the device mesh and the placement of batches and state.

Nothing else in the project knows of devices. The batch is split over both mesh axes; the state is
replicated.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """A mesh with axes "data" and "fsdp" over all devices; data = -1 takes the devices that fsdp
    leaves.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    count = jax.device_count()
    if data == -1 and fsdp > 0:
        data = count // fsdp
    if data < 1 or fsdp < 1 or data * fsdp != count:
        raise ValueError(f"mesh: data = {data} times fsdp = {fsdp} must equal the {count} devices")
    return jax.make_mesh((data, fsdp), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch, as global arrays split over the devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
