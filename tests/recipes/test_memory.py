"""Bytes of a run, from shapes alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from slam_jax.commands import plan
from slam_jax.config.options import Mesh, Optimizer
from slam_jax.models import functional
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.parallel.sharding import AXES, make_mesh, shard
from slam_jax.recipes import memory
from slam_jax.recipes.open_teacher import open_teacher
from slam_jax.training.step import init_state, make_optimizer


@pytest.fixture(scope="module", autouse=True)
def devices():
    """Started before a plan asks for other numbers of them."""
    assert jax.device_count() == 8


def digits(*flags):
    """(the config of the digits, their teacher)."""
    command = plan.read_command(["--config", "digits", *flags])
    return command.config, open_teacher(command.config, command.workdir, weights=False)


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_a_device_holds_its_share_of_sd15():
    """Of state and of each part of it; within a tenth of the eighth."""
    tx = make_optimizer(Optimizer(), 10)
    unet = UNetConfig(cross_attention_dim=768, time_cond_proj_dim=256)
    params = functional.abstract_params(UNet2DConditionModel, unet)
    state = jax.eval_shape(lambda p: init_state(p, tx, make_mesh(8, 1)), params)
    for tree in (state, state.params, state.opt_state):
        total, here = memory.bytes_of(tree, AbstractMesh((1, 8), AXES))
        assert total == nbytes(tree)
        assert total / 8 <= here <= 1.1 * total / 8
        assert memory.bytes_of(tree, AbstractMesh((8, 1), AXES)) == (total, total)
        assert memory.bytes_of(tree, AbstractMesh((4, 8), AXES)) == (total, here)
    # Weights, their average, and two moments in float32: 859.6M of each.
    assert abs(nbytes(state) / (4 * 4 * 859.6e6) - 1) < 1e-4


def test_bytes_are_those_of_real_arrays():
    config, family = digits()
    config = dataclasses.replace(config, mesh=Mesh(2, 4))
    params, _ = memory.networks_of(config, family)
    mesh = make_mesh(2, 4)
    tx = make_optimizer(Optimizer(), 10)
    weights = shard(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params), mesh)
    state = init_state(weights, tx, mesh)
    parts = memory.parts_of(config, family)
    assert parts["gradients"] == parts["student"]
    for name, tree in (("student", weights), ("EMA", state.ema), ("optimiser", state.opt_state)):
        for device in mesh.devices.flat:
            shards = (s for a in jax.tree.leaves(tree) for s in a.addressable_shards)
            here = sum(shard.data.nbytes for shard in shards if shard.device == device)
            assert parts[name] == (nbytes(tree), here), name
    assert parts["student"][1] < parts["student"][0] / 3


def test_a_student_that_is_gathered_again_is_not_counted_as_kept():
    config, family = digits()

    def copies(remat):
        """What is counted more where two devices share the state."""
        one, two = (
            dataclasses.replace(
                config,
                training=dataclasses.replace(config.training, remat=remat, batch_size=2 * fsdp),
                mesh=Mesh(1, fsdp),
            )
            for fsdp in (1, 2)
        )
        return memory.counted_bytes(two, family) - memory.counted_bytes(one, family)

    params, _ = memory.networks_of(config, family)
    kernels = sum(leaf.size for leaf in jax.tree.leaves(params) if len(leaf.shape) > 1)
    assert copies("minimal") - copies("full") == 4 * kernels


def test_compiling_takes_two_devices_along_data_and_as_many_rows_for_each(monkeypatch):
    config, family = digits("--config.training.accumulation=2")
    config = dataclasses.replace(config, mesh=Mesh(4, 4))
    asked = []

    def lower(config, family, mesh):
        asked.append((config.mesh, config.training.batch_size, dict(mesh.shape)))
        x = jax.ShapeDtypeStruct((1000,), jnp.float32)
        # The sorted array is needed after the first is gone, and is no output.
        return jax.jit(lambda x: jnp.sort(x)[::7]).lower(x)

    monkeypatch.setattr(memory, "lower", lower)
    found, source = memory.compiled_bytes(config, family)
    assert asked == [(Mesh(2, 4), 64 // 16 * 8, {"data": 2, "fsdp": 4})]
    assert source == "of XLA on cpu, an estimate for others"
    assert 4000 <= found <= 12000
    with pytest.raises(memory.InputError, match="--mesh: 16 devices are needed to compile for it"):
        memory.compiled_bytes(dataclasses.replace(config, mesh=Mesh(1, 16)), family)
