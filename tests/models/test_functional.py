"""Modules as pure functions of nested dicts; weight names and files of these."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slam_jax.formats import convert
from slam_jax.formats import safetensors as weights
from slam_jax.models import functional


class Chain(nnx.Module):
    """Twelve layers in a list: as strings, "10" sorts before "2"."""

    def __init__(self, width, *, rngs):
        self.links = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(12)])

    def __call__(self, x):
        for link in self.links:
            x = link(x)
        return x

    def first_link(self, x):
        return self.links[0](x)


class Kinds(nnx.Module):
    """One layer of each kind of weight, with more outputs than are converted at a time."""

    def __init__(self, width, *, rngs):
        self.conv = nnx.Conv(2, width, (3, 3), rngs=rngs)
        self.linear = nnx.Linear(3, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.embed = nnx.Embed(5, width, rngs=rngs)


class OneProjection(nnx.Module):
    """A linear layer where a UNet of another family has a convolution."""

    def __init__(self, width, *, rngs):
        self.proj_in = nnx.Linear(width, width, rngs=rngs)


def test_lists_longer_than_ten_keep_their_order():
    params = functional.init(Chain, 3, jax.random.key(0))
    x = expected = np.ones((1, 3), np.float32)
    for i in range(12):
        expected = expected @ np.asarray(params["links"][str(i)]["kernel"])
    actual = functional.apply_fn(Chain, 3)(params, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_any_method_is_a_pure_function():
    params = functional.init(Chain, 3, jax.random.key(0))
    x = np.ones((1, 3), np.float32)
    actual = functional.apply_fn(Chain, 3, method="first_link")(params, x)
    np.testing.assert_allclose(actual, x @ np.asarray(params["links"]["0"]["kernel"]), rtol=1e-6)


def test_init_depends_on_the_key_alone():
    a, b, c = (functional.init(Chain, 3, jax.random.key(seed)) for seed in (0, 0, 1))
    assert functional.first_difference(functional.abstract_params(Chain, 3), a) is None
    jax.tree.map(np.testing.assert_array_equal, a, b)
    kernel = a["links"]["0"]["kernel"]
    assert not np.array_equal(kernel, a["links"]["1"]["kernel"])
    assert not np.array_equal(kernel, c["links"]["0"]["kernel"])
    wide = functional.init(Chain, 100, jax.random.key(0))["links"]["0"]["kernel"]
    assert wide.std() == pytest.approx(0.1, rel=0.05)


def test_from_torch_reports_missing_extra_and_wrong_shapes():
    abstract = functional.abstract_params(Chain, 3)
    state_dict = convert.to_torch(functional.init(Chain, 3, jax.random.key(0)))
    del state_dict["links.4.bias"]
    state_dict["position_ids"] = np.zeros(3)
    params, missing, extra = convert.from_torch(state_dict, abstract)
    assert missing == ["links.4.bias"] and extra == ["position_ids"]
    assert params["links"]["4"].keys() == {"kernel"}
    state_dict["links.7.weight"] = np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"links.7.weight has shape \(3, 4\), expected \(3, 3\)"):
        convert.from_torch(state_dict, abstract)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_from_torch_layouts_and_dtypes(dtype):
    rng = np.random.default_rng(0)
    shapes = {
        "conv.weight": (300, 2, 3, 3),
        "conv.bias": (300,),
        "linear.weight": (300, 3),
        "linear.bias": (300,),
        "norm.weight": (300,),
        "norm.bias": (300,),
        "embed.weight": (5, 300),
    }
    state_dict = {k: rng.standard_normal(shape).astype(dtype) for k, shape in shapes.items()}
    abstract = functional.abstract_params(Kinds, 300)
    params, missing, extra = convert.from_torch(state_dict, abstract)
    assert not missing and not extra
    expected = {key: array.astype(np.float32) for key, array in state_dict.items()}
    expected |= {
        "conv.kernel": expected.pop("conv.weight").transpose(2, 3, 1, 0),
        "linear.kernel": expected.pop("linear.weight").T,
        "norm.scale": expected.pop("norm.weight"),
        "embed.embedding": expected.pop("embed.weight"),
    }
    flat = functional.flatten(params)
    assert flat.keys() == expected.keys()
    for path, array in flat.items():
        assert array.dtype == np.float32 and array.flags.c_contiguous
        np.testing.assert_array_equal(array, expected[path], err_msg=path)


def test_from_torch_reads_and_places_one_array_at_a_time():
    source = convert.to_torch(functional.init(Chain, 3, jax.random.key(0)))
    log = []

    class Lazy(Mapping):
        def __getitem__(self, key):
            log.append(key)
            return source[key]

        def __iter__(self):
            return iter(source)

        def __len__(self):
            return len(source)

    def place(array):
        log.append("placed")
        return jnp.asarray(array)

    params, *_ = convert.from_torch(Lazy(), functional.abstract_params(Chain, 3), place)
    assert sorted(log[::2]) == sorted(source)
    assert log[1::2] == ["placed"] * len(source)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_a_convolution_is_no_linear_layer():
    state_dict = {"proj_in.weight": np.ones((3, 3, 1, 1)), "proj_in.bias": np.ones(3)}
    abstract = functional.abstract_params(OneProjection, 3)
    with pytest.raises(ValueError, match=r"proj_in.weight has shape \(3, 3, 1, 1\)"):
        convert.from_torch(state_dict, abstract)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_saved_params_load_unchanged(tmp_path, dtype):
    params = functional.init(Chain, 3, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf.T.astype(dtype), params)
    weights.save_params(tmp_path / "params.safetensors", params)
    loaded = weights.load_params(tmp_path / "params.safetensors")
    assert functional.first_difference(params, loaded) is None
    assert functional.first_difference(params, loaded | {"x": 1}) == "x is not expected"
    assert "links is one array" in functional.first_difference(params, {"links": np.ones(2)})
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(dtype)}


def test_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "params.safetensors"
    weights.save_params(path, {"a": np.ones(2)})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        weights.save_params(path, {"a": np.zeros(2)})
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(weights.load_params(path)["a"], np.ones(2))


@pytest.mark.parametrize("content", [None, b"", b"not a safetensors file", "truncated"])
def test_unreadable_file_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "params.safetensors"
    if content == "truncated":
        weights.save_params(path, {"a": np.ones(100)})
        content = path.read_bytes()[:-50]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        weights.load_params(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_are_as_readable_as_other_files(tmp_path):
    (tmp_path / "other").touch()
    weights.save_params(tmp_path / "params.safetensors", {"a": np.ones(2)})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
