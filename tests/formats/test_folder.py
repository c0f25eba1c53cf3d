"""Model folders: every layout of weights, against torch's own loading."""

import json
import shutil
import tracemalloc
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_stable_diffusion
import torch
from tiny_folders import MODULES, VAE, assert_params_are, load_in_torch, read, rename, shard

from slam_jax.formats import diffusers_folder as folder
from slam_jax.formats import safetensors as weights

PARTS = [
    (family, component)
    for family in tiny_stable_diffusion.FAMILIES
    for component in MODULES
    if component != "text_encoder_2" or family == "sdxl"
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize("family", tiny_stable_diffusion.FAMILIES)
def test_the_stock_pipeline_draws(teachers, family, tmp_path):
    path = teachers[family]
    size = sum(file.stat().st_size for file in path.rglob("*"))
    assert size < 3e6
    pipeline = diffusers.DiffusionPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "output_type": "np", "generator": seed}
    (image,) = pipeline("a small dog on the beach", **options).images
    assert image.shape == (64, 64, 3)
    assert 0.02 < image.std() < 0.3
    again = tiny_stable_diffusion.make(tmp_path / "again", family)
    for file in path.rglob("*.*"):
        assert file.read_bytes() == (again / file.relative_to(path)).read_bytes()


@pytest.mark.parametrize(("family", "component"), PARTS)
def test_weights_are_those_that_torch_loads(teachers, family, component):
    params = read(teachers[family], component)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    assert_params_are(params, load_in_torch(teachers[family], component)[1])


LAYOUTS = {
    # name -> (options of torch's save_pretrained, dtype, variant)
    "sharded": ({"max_shard_size": "100KB"}, "float32", ""),
    "fp16": ({"variant": "fp16"}, "float16", "fp16"),
    "sharded fp16": ({"variant": "fp16", "max_shard_size": "50KB"}, "float16", "fp16"),
    "bf16": ({}, "bfloat16", ""),
}


@pytest.mark.parametrize("component", MODULES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_torch_writes(teachers, tmp_path, component, layout):
    options, dtype, variant = LAYOUTS[layout]
    module, _ = load_in_torch(teachers["sdxl"], component)
    path = tmp_path / "model"
    module.to(getattr(torch, dtype)).save_pretrained(path / component, **options)
    shutil.copy(teachers["sdxl"] / component / "config.json", path / component)
    files = sorted(file.name for file in (path / component).glob("*safetensors*"))
    assert (len(files) > 2) == ("sharded" in layout)
    assert all(("fp16" in name) == bool(variant) for name in files)
    module.float()
    state = dict(module.state_dict())
    if not any(key.startswith("text_") for key in state) and "text" in component:
        state = {f"text_model.{key}": tensor for key, tensor in state.items()}
    assert_params_are(read(path, component, variant), state)
    as_bfloat16 = {key: tensor.to(torch.bfloat16) for key, tensor in state.items()}
    assert_params_are(read(path, component, variant, dtype=jnp.bfloat16), as_bfloat16)


@pytest.mark.parametrize(
    "index",
    ["{}.safetensors.fp16.index.json", "{}.fp16.safetensors.index.json"],
)
def test_older_names_of_a_sharded_variant(teachers, tmp_path, index):
    stem = "diffusion_pytorch_model"
    module, state = load_in_torch(teachers["sdxl"], "vae")
    path = tmp_path / "model"
    module.save_pretrained(path / "vae", variant="fp16", max_shard_size="50KB")
    rename(path / "vae", f"{stem}.safetensors.index.fp16.json", index.format(stem))
    assert_params_are(read(path, "vae", "fp16"), state)


def test_a_variant_beside_the_plain_weights(changeable):
    module, state = load_in_torch(changeable, "text_encoder")
    module.half().save_pretrained(changeable / "text_encoder", variant="fp16")
    assert_params_are(read(changeable, "text_encoder"), state)
    halves = {key: tensor.half().float() for key, tensor in state.items()}
    assert_params_are(read(changeable, "text_encoder", "fp16"), halves)


def test_an_index_comes_before_a_single_file_as_in_torch(changeable):
    _, state = load_in_torch(changeable, "vae")
    shard(changeable)
    other = {key: tensor.numpy() + 1 for key, tensor in state.items()}
    weights.save_arrays(changeable / VAE, other)
    assert_params_are(read(changeable, "vae"), state)
    in_torch = load_in_torch(changeable, "vae")[1]  # which reads no older names from shards
    np.testing.assert_array_equal(in_torch["quant_conv.weight"], state["quant_conv.weight"])


def test_placed_one_by_one(changeable):
    seen = []

    def place(array):
        seen.append(array.nbytes)
        return (array.shape, array.dtype)

    params = read(changeable, "vae", place=place, dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert len(seen) == len(leaves) > 50
    assert {dtype for _, dtype in leaves} == {np.dtype(jnp.bfloat16)}


# Files of arrays


def test_lazy_arrays(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}{shape}": rng.integers(0, 2 if name == "BOOL" else 100, shape).astype(dtype)
        for name, dtype in weights.DTYPES.items()
        for shape in ((), (3,), (2, 0), (2, 3, 4))
    }
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    lazy = weights.open_arrays(tmp_path / "a.safetensors")
    assert set(lazy) == arrays.keys()
    assert len(lazy) == len(arrays)
    assert "F32(3,)" in lazy
    assert "F32" not in lazy
    for key, array in arrays.items():
        np.testing.assert_array_equal(lazy[key], array, strict=True)
    with pytest.raises(KeyError):
        lazy["F32"]


def test_lazy_arrays_take_no_memory_before_they_are_asked_for(tmp_path):
    file = tmp_path / "a.safetensors"
    weights.save_arrays(file, {"big": np.ones(1 << 23, np.float32), "small": np.ones(9)})
    tracemalloc.start()
    lazy = weights.open_arrays(file)
    small, _ = lazy["small"], "big" in lazy
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert small.sum() == 9
    assert peak < 1 << 20
    big = lazy["big"]
    if Path("/proc/self/maps").exists():  # not mapped: pages of a mapped file count as memory
        assert str(file) not in Path("/proc/self/maps").read_text()
    assert big.sum() == 1 << 23


def test_fingerprint(changeable, tmp_path):
    model = folder.resolve(str(changeable))
    first = folder.fingerprints(model)
    parts = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert first.keys() == {"empty prompt", *parts} and len(set(first.values())) == 6
    index = json.loads((changeable / "model_index.json").read_text())
    (changeable / "model_index.json").write_text(
        json.dumps({**index, "force_zeros_for_empty_prompt": True})
    )
    changed = {name for name, value in folder.fingerprints(model).items() if value != first[name]}
    assert changed == {"empty prompt"}
    (changeable / "model_index.json").write_text(json.dumps(index))
    file = changeable / "vae" / "diffusion_pytorch_model.safetensors"
    arrays = weights.load_arrays(file)
    names = sorted(arrays)
    for half in (names[::2], names[1::2]):
        weights.save_arrays(
            changeable / "vae" / f"{half[0]}.safetensors", {k: arrays[k] for k in half}
        )
    index = {key: f"{names[i % 2]}.safetensors" for i, key in enumerate(names)}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": index}))
    file.unlink()
    assert folder.fingerprints(model) == first
    big = max(arrays, key=lambda key: arrays[key].size)
    original = weights.LazyArrays.fingerprint
    weights.save_arrays(changeable / "vae" / "other.safetensors", arrays)
    first = original(weights.open_arrays(changeable / "vae" / "other.safetensors"))
    for change in (slice(0, 1), slice(-1, None), slice(200, -200)):
        changed = {key: array.copy() for key, array in arrays.items()}
        changed[big].reshape(-1)[change] += 1e-3
        weights.save_arrays(changeable / "vae" / "other.safetensors", changed)
        other = weights.open_arrays(changeable / "vae" / "other.safetensors").fingerprint()
        assert other != first


@pytest.mark.parametrize("family", tiny_stable_diffusion.FAMILIES)
def test_model_index_and_scheduler(teachers, family):
    model = folder.resolve(str(teachers[family]))
    index = folder.read_model_index(model)
    assert index.get("force_zeros_for_empty_prompt", False) == (family == "sdxl")
    scheduler = folder.read_config(model, "scheduler")
    assert scheduler == tiny_stable_diffusion.SCHEDULERS[family]
