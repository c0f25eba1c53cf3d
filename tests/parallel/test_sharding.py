"""The mesh, the rules, and the placement of arrays, on the 8 devices that conftest fakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jaxprs import operations

from slam_jax.models.attention import attention
from slam_jax.parallel.program import traffic_of
from slam_jax.parallel.sharding import (
    AXES,
    batch_sharding,
    by_rows,
    gather,
    gathered_grad,
    make_mesh,
    replicate,
    replicated,
    rows_here,
    rows_of_device,
    shard,
    shard_batch,
    shardings_of,
    specs_of,
    sum_gradients,
)


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
    placed = shard_batch(batch, make_mesh(fsdp=fsdp))
    assert placed.keys() == batch.keys()
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name])
        shards = array.addressable_shards
        assert {shard.device for shard in shards} == set(jax.devices())
        for part in shards:
            start = part.index[0].start
            np.testing.assert_array_equal(part.data, batch[name][start : start + 2])
        assert sorted(shard.index[0].start for shard in shards) == list(range(0, 16, 2))
    for name, rows in rows_here(placed).items():
        np.testing.assert_array_equal(rows, batch[name])


def test_rows_of_a_single_device():
    batch = {"x": np.arange(6.0).reshape(3, 2)}
    placed = shard_batch(batch, make_mesh(devices=jax.devices()[:1]))
    np.testing.assert_array_equal(rows_here(placed)["x"], batch["x"])


def test_replicated_arrays_are_whole_everywhere():
    mesh = make_mesh(fsdp=2)
    array = jax.device_put(np.arange(6.0), replicated(mesh))
    assert [shard.data.shape for shard in array.addressable_shards] == [(6,)] * 8
    assert array.sharding.is_fully_replicated
    assert not jax.device_put(np.arange(8.0), batch_sharding(mesh)).sharding.is_fully_replicated


SHAPES = {
    "conv": {"kernel": (3, 3, 8, 16), "bias": (16,)},
    "norm": {"scale": (16,)},
    "bias": {"kernel": (16, 8)},  # a group of that name is no bias
    "odd": (6, 10),
    "count": (),
}


def abstract(shapes=SHAPES):
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def test_rules_split_the_inputs_of_a_kernel_or_else_the_longest_axis_that_fsdp_divides():
    assert specs_of(abstract(), make_mesh(fsdp=4)) == {
        "conv": {"kernel": P(None, None, "fsdp"), "bias": P()},
        "norm": {"scale": P()},
        "bias": {"kernel": P("fsdp")},
        "odd": P(),
        "count": P(),
    }
    assert specs_of(abstract(), make_mesh(fsdp=2))["odd"] == P("fsdp")
    others = {"in": (3, 3, 4, 16), "patches": (16, 8, 4, 32), "vector": (16,)}
    assert specs_of(abstract(others), make_mesh(fsdp=8)) == {
        "in": P(None, None, None, "fsdp"),
        "patches": P(None, None, None, "fsdp"),
        "vector": P("fsdp"),
    }
    assert set(jax.tree.leaves(specs_of(abstract(), make_mesh(fsdp=1)))) == {P()}


def test_rules_are_data_and_the_first_that_fits_decides():
    rules = ((r"^conv\.", "repeat"), (r"kernel|scale", "split"), (r"", "repeat"))
    specs = specs_of(abstract(), make_mesh(fsdp=2), rules)
    assert specs["conv"] == {"kernel": P(), "bias": P()}
    assert specs["norm"]["scale"] == P("fsdp") and specs["odd"] == P()
    with pytest.raises(
        ValueError, match="rule for bias.kernel is 'half', expected split or repeat"
    ):
        specs_of(abstract(), make_mesh(), ((r"", "half"),))


def test_put_sends_each_device_its_part():
    mesh = make_mesh(fsdp=4)
    tree = jax.tree.map(lambda leaf: np.random.default_rng(0).normal(size=leaf.shape), abstract())
    placed = shard(tree, mesh)
    assert jax.tree.all(
        jax.tree.map(lambda a, s: a.sharding == s, placed, shardings_of(tree, mesh))
    )
    shards = placed["conv"]["kernel"].addressable_shards
    assert [shard.data.shape for shard in shards] == [(3, 3, 2, 16)] * 8
    jax.tree.map(np.testing.assert_array_equal, placed, jax.tree.map(np.float32, tree))
    together = replicate(placed, mesh)
    assert all(array.sharding.is_fully_replicated for array in jax.tree.leaves(together))
    jax.tree.map(np.testing.assert_array_equal, together, placed)


@pytest.mark.parametrize(("fsdp", "dtype"), [(1, None), (4, None), (8, None), (4, "bfloat16")])
def test_gradients_of_gathered_arrays_are_those_of_one_device(fsdp, dtype):
    """In bfloat16 a device's part of the gradient is rounded, and the sum is not."""
    mesh = make_mesh(fsdp=fsdp)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(5, 16)), "bias": rng.normal(size=16)}
    params = jax.tree.map(np.float32, params)
    x = rng.normal(size=(16, 5)).astype(np.float32)
    specs = specs_of(params, mesh)

    def loss(params, x):
        y = x.astype(params["kernel"].dtype) @ params["kernel"] + params["bias"][None, :]
        return (y.astype(jnp.float32) ** 2).sum()

    def on_device(params, x):
        seen = []

        def local(params):
            params = gather(params, specs, dtype)
            seen.append(params["kernel"].dtype)
            return loss(params, x)

        grads = sum_gradients(jax.grad(local)(params), specs)
        assert seen == [dtype or "float32"] and grads["kernel"].dtype == "float32"
        return grads, rows_of_device(16)

    rows = P(AXES)
    grads, indices = jax.jit(
        jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(specs, rows),
            out_specs=(specs, rows),
            check_vma=False,
        )
    )(shard(params, mesh), shard_batch({"x": x}, mesh)["x"])
    np.testing.assert_array_equal(indices, np.arange(16))
    if dtype is None:
        expected = jax.grad(loss)(params, x)
    else:  # two rows to a device
        rounded = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
        parts = [jax.grad(loss)(rounded, x[i : i + 2]) for i in range(0, 16, 2)]
        expected = jax.tree.map(lambda *g: sum(np.asarray(a, np.float64) for a in g), *parts)
    for name, gradient in grads.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=2e-5)


@pytest.mark.parametrize(("remat", "more"), [(lambda block: block, 2), (jax.checkpoint, 3)])
def test_weights_that_are_gathered_again_are_not_kept_and_give_the_same_gradients(remat, more):
    """`more` of them: without remat nothing asks for the first, as for the gradient of x."""
    mesh, rng = make_mesh(fsdp=8), np.random.default_rng(0)
    params = [rng.normal(size=(8, 8)).astype(np.float32) for _ in range(3)]
    x = rng.normal(size=(16, 8)).astype(np.float32)
    specs = specs_of(params, mesh)

    def loss(params, x):
        for kernel in params:
            x = remat(lambda x, kernel: jnp.tanh(jnp.sin(x @ kernel)))(x, kernel)
        return (x**2).sum(), x.mean()

    def gradients(again):
        def on_device(params, x):
            grads, _ = gathered_grad(lambda params: loss(params, x), params, specs, again=again)
            return sum_gradients(grads, specs)

        mapped = jax.shard_map(
            on_device, mesh=mesh, in_specs=(specs, P(AXES)), out_specs=specs, check_vma=False
        )
        return jax.jit(mapped)

    arguments = shard(params, mesh), shard_batch({"x": x}, mesh)["x"]
    kept, again = (gradients(again).trace(*arguments) for again in (False, True))
    # What a block computes again does not depend on it.
    for name in ("dot_general", "tanh", "sin", "reduce_scatter"):
        counts = [operations(traced.jaxpr.jaxpr)[name] for traced in (kept, again)]
        assert counts[0] == counts[1] > 0
    keep_barriers = {"xla_disable_hlo_passes": "cse_barrier_expander"}  # as accelerators do
    texts = [traced.lower().compile(keep_barriers).as_text() for traced in (kept, again)]
    counts = [sum(t.count for t in traffic_of(text) if t.kind == "all-gather") for text in texts]
    assert counts == [3, 3 + more]
    expected, _ = jax.grad(loss, has_aux=True)(params, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5),
        gradients(True)(*arguments),
        expected,
    )


def test_a_kernel_that_xla_cannot_split_computes_the_rows_of_each_device():
    mesh = make_mesh()
    shape = jax.ShapeDtypeStruct((8, 1024, 1, 40), jnp.bfloat16, sharding=batch_sharding(mesh))

    def attend(scale, x):
        return attention(scale * x, x, x, implementation="splash")

    def kernels(program):
        lowered = program.trace(jnp.bfloat16(1), shape).lower(lowering_platforms=("tpu",))
        return lowered.as_text().count("tpu_custom_call")

    assert kernels(by_rows(attend, mesh)) == 1
    with pytest.raises(NotImplementedError, match="cannot be automatically partitioned"):
        kernels(jax.jit(attend))
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    rows = shard_batch({"x": x}, mesh)["x"]
    result = by_rows(lambda scale, x: {"y": scale * x, "sum": x.sum(axis=1)}, mesh)(2.0, rows)
    np.testing.assert_array_equal(result["y"], 2 * x)
    np.testing.assert_allclose(result["sum"], x.sum(axis=1), rtol=1e-6)
    assert len(result["y"].addressable_shards) == 8
