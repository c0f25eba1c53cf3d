"""Activations that the backward pass computes again: the same gradients in less memory."""

import dataclasses
from functools import cache

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import sd_schedule
from jaxprs import operations

from slam_jax.families.digits import DigitsPipeline
from slam_jax.families.pipeline import student_network
from slam_jax.models import functional
from slam_jax.models.execution import Execution
from slam_jax.models.remat import REMAT
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig

CONFIG = UNetConfig(
    block_out_channels=(32,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=24,
    attention_head_dim=2,
    transformer_layers_per_block=2,
)
# One resnet and one transformer on the way down, two and one in the middle, two and two on the way
# up.
RESNETS, TRANSFORMERS = 1 + 2 + 2, 1 + 1 + 2
BLOCKS = 2 * TRANSFORMERS  # each with an attention to itself and one to the context
SIZE, TOKENS = 32, 5
SCORES = 2 * SIZE**4 * 4  # bytes of what an attention of the map to itself weighs with


def inputs():
    rng = np.random.default_rng(0)
    shapes = (1, SIZE, SIZE, 4), (1, TOKENS, 24)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def gradients(remat, config=CONFIG):
    """(params, x, context) -> (the loss, its gradients)."""
    execution = Execution(attention="xla")  # what is counted here is its products
    apply = functional.apply_fn(UNet2DConditionModel, config, execution=execution)

    def loss(params, x, context):
        return jnp.mean(apply(params, x, jnp.array([412.5]), context, remat=remat) ** 2)

    return jax.value_and_grad(loss, argnums=(0, 1, 2))


@cache
def traced(remat):
    params = functional.abstract_params(UNet2DConditionModel, CONFIG)
    return operations(jax.make_jaxpr(gradients(remat))(params, *inputs()).jaxpr)


def recomputed(remat):
    """How often each primitive is there more often than without recomputation."""
    return traced(remat) - traced("none")


def test_without_recomputation_the_program_is_a_plain_one():
    assert not {name for name in traced("none") if "remat" in name or "checkpoint" in name}
    assert not {name for name in traced("none") if "barrier" in name}


def test_minimal_recomputes_what_is_cheap():
    again = recomputed("minimal")
    assert again["exp"] == 2 * BLOCKS  # the softmax of each attention
    assert again["batched dot_general"] == 2 * 2 * BLOCKS  # its scores and its output
    assert again["rsqrt"] == 2 * RESNETS + TRANSFORMERS + 3 * BLOCKS  # every norm but the last
    assert again["conv_general_dilated"] == again["dot_general"] == 0


def test_full_recomputes_blocks():
    again = recomputed("full")
    # The second convolution of a resnet makes nothing that its gradient needs.
    assert again["conv_general_dilated"] == RESNETS
    # Queries, keys, values of both attentions, their projections, the first half of the
    # feed-forward, of which the gradient needs all but the last projection's output; the time.
    assert again["dot_general"] == BLOCKS * (2 * 4 + 1) + RESNETS
    assert again["batched dot_general"] == 2 * 2 * BLOCKS
    assert again["exp"] == 2 * BLOCKS


@pytest.mark.nightly
def test_gradients_stay_and_memory_falls():
    two_levels = dataclasses.replace(
        CONFIG,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        transformer_layers_per_block=1,
    )
    params = functional.init(UNet2DConditionModel, two_levels, jax.random.key(0))
    # XLA's default order of operations on a CPU is for speed and hides what is saved.
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    arguments, memory, expected = (params, *inputs()), {}, None
    for remat in REMAT:
        program = jax.jit(gradients(remat, two_levels)).lower(*arguments)
        compiled = program.compile(compiler_options=options)
        memory[remat] = compiled.memory_analysis().temp_size_in_bytes
        actual = jax.device_get(compiled(*arguments))
        expected = actual if remat == "none" else expected
        for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
            assert np.any(other)
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
    assert list(memory) == ["none", "minimal", "full"]
    assert memory["minimal"] < 0.95 * memory["none"]
    assert memory["full"] < 0.97 * memory["minimal"]


def digits_student(remat):
    pipeline = DigitsPipeline(CONFIG, {}, sd_schedule(), (SIZE, SIZE, 4))
    return student_network(pipeline, CONFIG, remat)


def kept(remat):
    """Bytes of each array of the forward pass that a student's gradient keeps; weights and inputs
    apart."""
    student = digits_student(remat)
    params = functional.abstract_params(UNet2DConditionModel, CONFIG)

    def pullback(params, x, context):
        def output(params):
            return student(params)(x, jnp.ones(1), {"encoder_hidden_states": context}, jnp.ones(1))

        return jax.vjp(output, params)[1]

    jaxpr = jax.make_jaxpr(pullback)(params, *inputs()).jaxpr
    arrays = {v for v in jaxpr.outvars if isinstance(v, jax.extend.core.Var)} - {*jaxpr.invars}
    return [array.aval.size * array.aval.dtype.itemsize for array in arrays]


def test_a_student_keeps_what_it_is_told_to():
    one_map = SIZE * SIZE * 32 * 4
    # Inputs of resnets and transformers; of the transformers' blocks, and what leaves the last;
    # for each way up, the map that is joined is one that the way down has kept already. And of the
    # last norm and convolution, which are no block's, a few.
    blocks = RESNETS + TRANSFORMERS + BLOCKS + TRANSFORMERS
    maps = [size for size in kept("full") if size >= one_map]
    assert set(maps) == {one_map}
    assert blocks <= len(maps) <= blocks + 6
    assert kept("none").count(SCORES) >= BLOCKS
    assert SCORES not in kept("minimal")
    assert sum(kept("full")) < sum(kept("minimal")) / 2 < sum(kept("none")) / 8


def test_another_name_is_refused():
    student = digits_student("everything")
    params = functional.abstract_params(UNet2DConditionModel, CONFIG)
    x, context = inputs()
    with pytest.raises(ValueError, match="'everything', expected one of none, minimal, full"):
        jax.eval_shape(
            lambda p: student(p)(x, jnp.ones(1), {"encoder_hidden_states": context}, jnp.ones(1)),
            params,
        )
