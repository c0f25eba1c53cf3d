"""Attention: every implementation against float64; what is kept; who computes on which platform."""

import re
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit

from slam_jax.models import attention as attention_module
from slam_jax.models import chunked_attention, splash_attention
from slam_jax.models.attention import attention

# Batch, queries, keys, heads, features of a head.
SMALL = {
    "self": (2, 16, 16, 2, 8),
    "odd": (2, 13, 13, 3, 5),
    "cross": (2, 9, 7, 2, 8),
    "more keys": (1, 5, 11, 1, 4),
}
# What "chunked" does in several tiles, when these are small.
TILES = {
    "rows": (1, 24, 30, 1, 4),
    "rows and a rest": (2, 13, 31, 2, 3),
    "heads": (1, 6, 10, 6, 3),
}
# What the kernel for TPUs does in several blocks, which are smaller for wide heads.
BLOCKS = {"blocks": (1, 300, 600, 2, 40), "wide": (1, 300, 300, 1, 320)}
CASES = SMALL | TILES | BLOCKS


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setitem(attention_module.FEW, "cpu", 256)
    monkeypatch.setattr(chunked_attention, "TILE", 256)
    monkeypatch.setattr(chunked_attention, "ROWS", 3)


def arrays(case, dtype=jnp.float32):
    """Queries, keys, values and the cotangent of the output, as jax arrays."""
    batch, length, keys, heads, features = CASES[case]
    rng = np.random.default_rng(0)

    def normal(tokens):
        return jnp.asarray(rng.standard_normal((batch, tokens, heads, features)), dtype)

    return 2 * normal(length), normal(keys), normal(keys), normal(length)


def expected(q, k, v, cotangent, is_causal):
    """Output and gradients for q, k and v in float64, by the definition and its derivative."""
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
    scale = 1 / np.sqrt(q.shape[-1])
    weights = np.exp(np.einsum("blhd,bshd->bhls", q, k) * scale)
    if is_causal:
        weights = weights * np.tri(q.shape[1], k.shape[1])
    weights /= weights.sum(axis=-1, keepdims=True)
    of_weights = np.einsum("blhd,bshd->bhls", cotangent, v)
    of_scores = weights * (of_weights - (weights * of_weights).sum(axis=-1, keepdims=True)) * scale
    return (
        np.einsum("bhls,bshd->blhd", weights, v),
        np.einsum("bhls,bshd->blhd", of_scores, k),
        np.einsum("bhls,blhd->bshd", of_scores, q),
        np.einsum("bhls,blhd->bshd", weights, cotangent),
    )


def computed(q, k, v, cotangent, implementation, is_causal, repeats=1):
    def output(q, k, v):  # what jax.jit has not traced with other tiles
        return attention.__wrapped__(q, k, v, implementation, is_causal, repeats)

    def output_and_gradients(q, k, v, cotangent):
        out, pullback = jax.vjp(output, q, k, v)
        return out, *pullback(cotangent)

    return jit(output_and_gradients)(q, k, v, cotangent)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("implementation", "case"),
    [
        *(("xla", case) for case in SMALL),
        *(("chunked", case) for case in SMALL | TILES),
        *(("auto", case) for case in ("more keys", "rows")),  # xla, and chunked on a CPU
    ],
)
def test_outputs_and_gradients_are_those_of_float64(small_tiles, implementation, case, is_causal):
    inputs = arrays(case)
    actual = computed(*inputs, implementation, is_causal)
    for one, other in zip(actual, expected(*inputs, is_causal), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
@pytest.mark.parametrize("case", ["odd", "rows and a rest"])
def test_a_last_key_may_stand_there_several_times(small_tiles, implementation, case):
    q, k, v, cotangent = arrays(case)
    actual = computed(q, k, v, cotangent, implementation, is_causal=False, repeats=3)
    k, v = (np.concatenate([x, x[:, -1:], x[:, -1:]], axis=1) for x in (k, v))
    out, of_q, *of_k_and_v = expected(q, k, v, cotangent, is_causal=False)
    for gradient in of_k_and_v:  # all three are the last key
        gradient[:, -3] = gradient[:, -3:].sum(axis=1)
    for one, other in zip(actual, (out, of_q, *(g[:, :-2] for g in of_k_and_v)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
@pytest.mark.parametrize("case", ["odd", "heads"])
def test_bfloat16(small_tiles, implementation, case):
    inputs = arrays(case, jnp.bfloat16)
    actual = computed(*inputs, implementation, is_causal=True)
    for one, other in zip(actual, expected(*inputs, is_causal=True), strict=True):
        assert one.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(one, np.float64) - other) / np.linalg.norm(other)
        assert error <= 1e-2


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_large_scores_do_not_overflow(implementation):
    q, k, v, cotangent = arrays("odd")
    actual = computed(100 * q, 100 * k, v, cotangent, implementation, is_causal=False)
    for array in actual:
        assert np.all(np.isfinite(array))
    best = np.einsum("blhd,bshd->bhls", q, k).argmax(axis=-1)
    closest = np.asarray(v)[np.arange(2)[:, None, None], best, np.arange(3)[None, :, None]]
    error = np.abs(np.asarray(actual[0]) - closest.transpose(0, 2, 1, 3)).max(axis=-1)
    assert np.median(error) < 1e-6  # but for the few where two keys are alike


def test_several_tiles_were_tested(small_tiles):
    """(heads at a time, rows at a time), or else the cases above would not say much."""
    tiles = {name: chunked_attention._Tiles.of(*arrays(name)[:2]) for name in SMALL | TILES}
    assert {name: (t.at_once, t.rows) for name, t in tiles.items()} == {
        "self": (1, 8),
        "odd": (1, 7),
        "cross": (2, 9),
        "more keys": (1, 5),
        "rows": (1, 8),
        "rows and a rest": (1, 4),
        "heads": (3, 6),
    }


LONG = jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.float32)
ALL_SCORES = 2 * 4096**2 * 4  # bytes


def lowered(implementation, *shapes, platform="cpu"):
    """The gradient for q, k and v."""

    def gradient(q, k, v):
        out, pullback = jax.vjp(lambda *arrays: attention(*arrays, implementation), q, k, v)
        return pullback(out)

    return jax.jit(gradient).trace(*shapes).lower(lowering_platforms=(platform,))


def test_chunked_never_holds_all_scores():
    memory = {}
    for implementation in ("chunked", "auto", "xla"):
        compiled = lowered(implementation, LONG, LONG, LONG).compile()
        memory[implementation] = compiled.memory_analysis().temp_size_in_bytes
    assert memory["chunked"] == memory["auto"] < ALL_SCORES / 4
    assert memory["xla"] >= ALL_SCORES


def test_auto_picks_by_platform():
    """The one that the program is lowered for, whatever this machine is; small ones are xla's."""

    def holds_scores(length, *platforms, keys=None):
        q = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        k = jax.ShapeDtypeStruct((1, keys or length, 2, 8), jnp.float32)
        program = jax.jit(attention).trace(q, k, k).lower(lowering_platforms=platforms)
        return f"{length}x{keys or length}xf32" in program.as_text()

    assert not holds_scores(4096, "cpu")
    assert not holds_scores(4096, "tpu")
    assert holds_scores(4096, "cuda")  # float32 is not for cudnn
    assert holds_scores(4096, "cpu", "cuda")
    assert holds_scores(64, "cpu") and not holds_scores(4096, "cpu", keys=77)
    assert holds_scores(512, "tpu") and holds_scores(2**16, "tpu", keys=77)


def test_an_attention_that_cudnn_cannot_do_is_computed_and_said_once(capsys):
    attention_module._say.cache_clear()
    for case in ("self", "cross"):
        inputs = arrays(case)
        out = attention(*inputs[:3], implementation="cudnn")
        np.testing.assert_allclose(out, expected(*inputs, False)[0], atol=1e-5)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"note: attention of head dim 8 in float32 cannot use cudnn \(.+\); xla computes it\n", err
    )
    attention(*arrays("more keys")[:3], implementation="auto")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("case", "repeats"), [("blocks", 1), ("blocks", 2), ("wide", 1)])
def test_what_the_kernel_for_tpus_computes(monkeypatch, case, repeats):
    """Step by step, as no TPU is here: several blocks, the last of them filled up."""
    interpreted = partial(splash_attention.splash_attention, interpret=True)
    monkeypatch.setattr(attention_module, "splash_attention", interpreted)
    computes = attention_module._COMPUTE
    monkeypatch.setitem(computes, "xla", computes["splash"])  # in the place of what CPUs do
    q, k, v, cotangent = arrays(case)
    actual = computed(q, k, v, cotangent, "xla", is_causal=False, repeats=repeats)
    if repeats == 2:
        k, v = (np.concatenate([x, x[:, -1:]], axis=1) for x in (k, v))
    out, of_q, *of_k_and_v = expected(q, k, v, cotangent, is_causal=False)
    if repeats == 2:
        of_k_and_v = [np.append(g[:, :-2], g[:, -2:].sum(1, keepdims=True), 1) for g in of_k_and_v]
    for one, other in zip(actual, (out, of_q, *of_k_and_v), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_lowered_for_tpus_it_is_the_kernel():
    def kernels(implementation, length, platform="tpu", keys=None, features=40, batch=1):
        q = jax.ShapeDtypeStruct((batch, length, 2, features), jnp.bfloat16)
        k = jax.ShapeDtypeStruct((batch, keys or length, 2, features), jnp.bfloat16)
        return (
            lowered(implementation, q, k, k, platform=platform).as_text().count("tpu_custom_call")
        )

    # One forward, two backward.
    assert kernels("auto", 4096) == kernels("auto", 1024, batch=8) == kernels("splash", 64) == 3
    assert kernels("auto", 4096, keys=77, batch=64) == kernels("auto", 1024) == 0
    assert kernels("auto", 577, batch=64) == 0  # it would be filled up
    assert kernels("auto", 4096, "cpu") == kernels("splash", 64, "cpu") == kernels("xla", 4096) == 0
    assert kernels("auto", 4096, features=512) == 3 and kernels("auto", 4096, features=640) == 0


def test_an_attention_that_the_kernel_for_tpus_cannot_do_is_computed_and_said_once(capsys):
    attention_module._say.cache_clear()
    inputs = arrays("self")
    for _ in range(2):
        out = attention(*inputs[:3], implementation="splash", is_causal=True)
        np.testing.assert_allclose(out, expected(*inputs, True)[0], atol=1e-5)
    note = "attention of head dim 8 in float32 cannot use splash (it is causal); xla computes it"
    assert capsys.readouterr().err == f"note: {note}\n"
    assert attention_module.why_not_splash(jax.ShapeDtypeStruct((1, 8, 1, 640), jnp.float32)) == (
        "head dim must be <= 512"
    )


@pytest.fixture
def cudnn(monkeypatch):
    """What jax asks of the machine before it traces, answered as an H100 would."""
    from jax._src.cudnn import fused_attention_stablehlo as module

    versions = types.SimpleNamespace(cudnn_get_version=lambda: 91002)
    monkeypatch.setattr(module, "cuda_versions", versions)
    monkeypatch.setattr(module, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(module, "is_cuda_compute_capability_equal", lambda capability: False)
    jax.clear_caches()
    yield
    jax.clear_caches()


def custom_calls(program):
    return re.findall(r"custom_call @__cudnn\$(\w+)", program.as_text())


@pytest.mark.parametrize("features", [40, 64, 80, 160])
@pytest.mark.parametrize("keys", [64, 77])
def test_lowered_for_cuda_it_is_cudnn(cudnn, features, keys):
    q = jax.ShapeDtypeStruct((2, 64, 8, features), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((2, keys, 8, features), jnp.bfloat16)
    for implementation in ("cudnn", "auto"):
        program = lowered(implementation, q, k, k, platform="cuda")
        assert sorted(custom_calls(program)) == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
        assert ("PADDING" in program.as_text()) == (keys == 77)
        assert not custom_calls(lowered(implementation, q, k, k, platform="cpu"))
    assert not custom_calls(lowered("xla", q, k, k, platform="cuda"))


def test_why_not_cudnn(cudnn):
    def why(features, dtype):
        x = jax.ShapeDtypeStruct((2, 64, 8, features), dtype)
        return attention_module.why_not_cudnn(x, x, x)

    assert why(64, jnp.bfloat16) is why(64, jnp.float16) is None
    assert "float32" in why(64, jnp.float32)
    assert "head dim must be <= 256" in why(512, jnp.bfloat16)
