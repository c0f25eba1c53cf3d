"""TPUs that are not here: their names, and what comes back from the compiler's process."""

import os
import signal
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slam_jax.base.errors import BackendError, InputError
from slam_jax.models.attention import attention
from slam_jax.parallel import topology
from slam_jax.parallel.program import Traffic, products_of, traffic_of, whole_at_once
from slam_jax.parallel.topology import (
    DoesNotFit,
    Topology,
    check_compiler,
    compile_apart,
    parse_topology,
)

SIDE = 1024


def test_a_topology_is_its_chip_and_its_grid():
    assert parse_topology("v5e:2x4") == Topology("v5e", (2, 4))
    assert [(parse_topology(t).size, str(parse_topology(t))) for t in ("v4:2x2x4", "v6e:1x1")] == [
        (16, "v4:2x2x4"),
        (1, "v6e:1x1"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "h100:8",
            "a kind of TPU and its grid of chips, such as v4:2x2x1, v5e:2x2, v5p:2x2x1, v6e",
        ),
        ("v5e", "--topology v5e: expected a kind of TPU"),
        ("v5e:2x", "--topology v5e:2x: expected"),
        ("v5e:0x4", "--topology v5e:0x4: expected"),
        ("v5e:2x2x2", "v5e has 2 sides"),
        ("v5p:2x4", "v5p has 3 sides"),
        ("v5e:3x4", "its first two sides are even, or all sides are 1"),
    ],
)
def test_other_topologies_are_refused(text, message):
    with pytest.raises(InputError, match=message) as refused:
        parse_topology(text)
    assert "\n" not in str(refused.value)


def test_without_the_compiler_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'slam_jax\[tpu-plan\]'"):
        check_compiler()


def gathered_and_summed(kind, devices):
    """Lowered for four devices: `kind` of [SIDE, SIDE] numbers, of which each has a quarter."""
    mesh = Mesh(np.array(devices[:4]), ("d",))

    def everywhere(part):
        if kind == "all-gather":
            return jax.lax.all_gather(part, "d", tiled=True)
        return jax.lax.psum_scatter(part, "d", tiled=True)

    split, whole = PartitionSpec("d"), PartitionSpec()
    specs = (split, whole) if kind == "all-gather" else (whole, split)
    program = jax.jit(
        jax.shard_map(everywhere, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)
    )
    where = NamedSharding(mesh, specs[0])
    return program.lower(jax.ShapeDtypeStruct((SIDE, SIDE), jnp.bfloat16, sharding=where))


@pytest.mark.parametrize("kind", ["all-gather", "reduce-scatter"])
def test_traffic_is_counted_in_whole_arrays(kind):
    text = gathered_and_summed(kind, jax.devices()).compile().as_text()
    (traffic,) = traffic_of(text)
    size = SIDE * SIDE * (2 if traffic.dtype == "bf16" else 4)  # a CPU sums in float32
    assert traffic == Traffic(kind, traffic.dtype, 1, size)


TPU_TEXT = """
  %param.1 = bf16[1024,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.5 = bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)} all-gather(%param.1), channel_id=1
  %start = (bf16[1024,4096]{1,0}, bf16[4096,4096]{1,0:T(8,128)}, u32[]) all-gather-start(%param.1)
  %done = bf16[4096,4096]{1,0:T(8,128)} all-gather-done(%start)
  %x = f32[16]{0:T(128)S(1)} add(%a, %b)
  %piece.1 = f32[8,32]{1,0:T(8,128)} all-gather(%x), frontend_attributes={chain_id="0"}, metadata={}
  %piece.2 = f32[8,32]{1,0:T(8,128)} all-gather(%x), frontend_attributes={chain_id="0"}, metadata={}
  %piece.3 = f32[8,32]{1,0:T(8,128)} all-gather(%x), frontend_attributes={chain_id="1"}, metadata={}
  %sum.2 = (f32[16]{0:T(128)S(1)}, /*index=1*/f32[16]{0:T(128)}) all-reduce(%x, /*index=1*/%x)
  %one.1 = f32[16]{0:T(128)} all-reduce(%x), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  %one.2 = f32[16]{0:T(128)} all-reduce(%x), replica_groups=[4,1]<=[4], to_apply=%add
  %two = f32[16]{0:T(128)} all-reduce(%x), replica_groups={{0,2},{1,3}}, to_apply=%add
"""


@pytest.mark.parametrize("operand", ["%param.1", "bf16[1024,4096]{1,0:T(8,128)(2,1)} %param.1"])
def test_the_text_of_a_tpu_program_is_read(operand):
    """In its notation: tiles, several arrays at once, operations that start and end, those in
    several pieces, and sums over groups of one device, which are none. Types stand beside operands
    too, where XLA is older."""
    assert traffic_of(TPU_TEXT.replace("(%param.1)", f"({operand})")) == (
        Traffic("all-gather", "bf16", 2, 2 * 4096 * 4096 * 2),
        Traffic("all-gather", "f32", 2, 2 * 8 * 32 * 4),
        Traffic("all-reduce", "f32", 2, 3 * 16 * 4),
    )


def test_products_are_told_by_their_dtypes():
    def products(x, w, kernel):
        y = x @ w + x.astype(jnp.float32) @ w
        images = y.reshape(1, 2, 2, 4)
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dims)

    x, w = jnp.ones((4, 4), jnp.bfloat16), jnp.ones((4, 4), jnp.bfloat16)
    text = jax.jit(products).lower(x, w, jnp.ones((3, 3, 4, 4))).as_text()
    assert products_of(text) == {"bf16 x bf16": 1, "f32 x f32": 2}


def killed(how, devices):
    """Stands for a compiler that crashes, fails or is told of bad input."""
    del devices
    if how == "input":
        raise InputError("config.teacher.path: no such folder")
    if how == "error":
        raise AttributeError("no such network")
    os.kill(os.getpid(), how)
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (signal.SIGSEGV, BackendError, "v5e:2x2 was ended by SIGSEGV: an error of its own"),
        (signal.SIGKILL, BackendError, "v5e:2x2 was ended by SIGKILL: perhaps for want of memory"),
        ("error", BackendError, "compiler for v5e:2x2 failed: AttributeError: no such network"),
        ("input", InputError, "config.teacher.path: no such folder"),
    ],
)
def test_what_ends_the_compiler_is_told_in_a_line(how, error, message):
    with pytest.raises(error, match=message):
        compile_apart(Topology("v5e", (2, 2)), partial(killed, how))


def product(side, devices):
    """Lowered for one device: the square of a matrix."""
    here = NamedSharding(Mesh(np.array(devices[:1]), ("d",)), PartitionSpec())
    x = jax.ShapeDtypeStruct((side, side), jnp.float32, sharding=here)
    return jax.jit(lambda x: x @ x).lower(x)


@pytest.mark.slow
def test_the_compiler_says_bytes_flops_and_traffic():
    program = compile_apart(parse_topology("v5e:1x1"), partial(product, SIDE))
    assert (program.arguments, program.results) == (4 * SIDE**2, 4 * SIDE**2)
    assert program.flops == pytest.approx(2 * SIDE**3, rel=0.01)
    assert program.traffic == () and program.products == {"f32 x f32": 1}
    assert program.code > 0
    program = compile_apart(parse_topology("v5p:2x2x1"), partial(gathered_and_summed, "all-gather"))
    assert program.traffic == (Traffic("all-gather", "bf16", 1, 2 * SIDE**2),)
    assert program.arguments == 2 * SIDE**2 // 4


@pytest.mark.slow
def test_what_does_not_fit_says_how_much_it_needs():
    """Two matrices of 9 GiB, where a chip has 16."""
    with pytest.raises(DoesNotFit) as refused:
        compile_apart(parse_topology("v5e:1x1"), partial(product, 49152))
    assert refused.value.need >= 2 * 4 * 49152**2 * 0.99
    assert refused.value.need < 4 * 4 * 49152**2
    assert "\n" not in str(refused.value)


# Tokens, heads and features of each: SD 1.5 at 512 pixels and at 1,024, SDXL, SD 3.5 with its
# prompt, and the VAE of all in float32.
ATTENTIONS = (
    *((4096, 8, 40, "bfloat16"), (1024, 8, 80, "bfloat16"), (1024, 8, 160, "bfloat16")),
    *((4096, 8, 64, "bfloat16"), (4429, 8, 64, "bfloat16"), (4096, 1, 512, "float32")),
)


def attentions(devices):
    """Lowered for one device: gradients of self-attentions, of which XLA's would keep scores."""
    here = NamedSharding(Mesh(np.array(devices[:1]), ("d",)), PartitionSpec())
    shapes = [
        jax.ShapeDtypeStruct((2, tokens, heads, features), dtype, sharding=here)
        for tokens, heads, features, dtype in ATTENTIONS
    ]

    def loss(arrays):
        return sum(attention(x, x, x).astype(jnp.float32).sum() for x in arrays)

    return jax.jit(jax.grad(loss)).lower(shapes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1"])
def test_the_attention_of_large_pictures_is_compiled_for_all_tpus(name):
    program = compile_apart(parse_topology(name), attentions)
    all_scores = max(2 * 8 * tokens**2 * 2 for tokens, *_ in ATTENTIONS)
    assert program.temporary < all_scores / 2


def test_gathered_arrays_are_counted_from_their_gathering_to_their_last_use():
    """2,000 numbers, read at once; 1,000 with 500 and 250; with 1,500 too if they are read last."""
    text = """
ENTRY %main (p: f32[250]) -> f32[1000] {
  %p = f32[250]{0} parameter(0)
  %all-gather.1 = f32[2000]{0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  %sum.1 = f32[] reduce(%all-gather.1), to_apply=%add
  %all-gather.2 = f32[1000]{0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  %all-gather-start.3 = (f32[250]{0}, f32[500]{0}) all-gather-start(%p), replica_groups={{0,1}}
  %both = (f32[1000]{0}, f32[250]{0}) tuple(%all-gather.2, %p)
  %all-gather-done.3 = f32[500]{0} all-gather-done(%all-gather-start.3)
  %all-gather.4 = f32[250]{0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  %all-gather.5 = f32[9000]{0} all-gather(%p), replica_groups={{0},{1},{2},{3}}, dimensions={0}
  %sum.2 = f32[] fusion(%all-gather-done.3, %all-gather.4, %all-gather.5), kind=kLoop
  %none = f32[250]{0} get-tuple-element(%both), index=1
  %first = f32[1000]{0} get-tuple-element(%both), index=0
  %all-gather.6 = f32[1500]{0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  %sum.3 = f32[] fusion(%all-gather.6, %none), kind=kLoop
  ROOT %out = f32[1000]{0} fusion(%first, %none), kind=kLoop
}
"""
    assert whole_at_once(text) == 4 * (1000 + 1500)
    early = text.replace("fusion(%first, %none)", "fusion(%none, %none)")
    assert whole_at_once(early) == 4 * 2000
    assert whole_at_once(early.replace("f32[2000]", "f32[20]")) == 4 * (1000 + 500 + 250)
    moved = text.replace(
        "%first = f32[1000]{0} get-tuple-element(%both), index=0",
        "%first = f32[1000]{0} copy(%all-gather.2)",
    )
    assert moved != text and whole_at_once(moved) == whole_at_once(text)
    assert whole_at_once("\nENTRY %main {\n}") == 0
    assert whole_at_once(f"%fused {{\n  %x = f32[4]{{0}} all-gather(%p)\n}}\n{text}") is None
    loop = text.replace(
        "ROOT %out = f32[1000]{0} fusion(%first, %none), kind=kLoop",
        "ROOT %out = f32[1000]{0} while(%first), body=%b",
    )
    assert loop != text and whole_at_once(loop) is None
