"""The mesh and the placement of arrays, on the 8 devices that conftest fakes."""

import jax
import numpy as np
import pytest

from slam_jax.sharding import batch_sharding, make_mesh, put_batch, replicated


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [({}, (8, 1)), (dict(fsdp=4), (2, 4)), (dict(data=4, fsdp=2), (4, 2)), (dict(data=8), (8, 1))],
)
def test_mesh_uses_all_devices(arguments, shape):
    mesh = make_mesh(**arguments)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp"), shape, strict=True))
    assert set(mesh.devices.ravel()) == set(jax.devices())


@pytest.mark.parametrize(
    "arguments",
    [
        dict(data=3),
        dict(fsdp=3),
        dict(fsdp=16),
        dict(data=4, fsdp=4),
        dict(data=0),
        dict(fsdp=0),
        dict(fsdp=-1),
        dict(data=-8, fsdp=-1),
        dict(data=4),
    ],
)
def test_mesh_that_does_not_fit_the_devices_is_refused(arguments):
    with pytest.raises(ValueError, match="8 devices"):
        make_mesh(**arguments)


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_batch_is_split_over_all_devices(fsdp):
    numbers = np.arange(96.0)
    batch = {"latents": numbers.reshape(16, 2, 3), "tokens": numbers[:32].reshape(16, 2)}
    placed = put_batch(batch, make_mesh(fsdp=fsdp))
    assert placed.keys() == batch.keys()
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name])
        shards = array.addressable_shards
        assert {shard.device for shard in shards} == set(jax.devices())
        for shard in shards:
            start = shard.index[0].start
            np.testing.assert_array_equal(shard.data, batch[name][start : start + 2])
        assert sorted(shard.index[0].start for shard in shards) == list(range(0, 16, 2))


def test_replicated_arrays_are_whole_everywhere():
    mesh = make_mesh(fsdp=2)
    array = jax.device_put(np.arange(6.0), replicated(mesh))
    assert [shard.data.shape for shard in array.addressable_shards] == [(6,)] * 8
    assert array.sharding.is_fully_replicated
    assert not jax.device_put(np.arange(8.0), batch_sharding(mesh)).sharding.is_fully_replicated
