"""Model folders: every layout of weights against torch's own loading, tokenizers, refusals."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_stable_diffusion
import torch
import transformers
from flax import serialization

from slam_jax.errors import InputError
from slam_jax.models import convert, folder, functional, weights
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.models.vae import AutoencoderKL, VAEConfig

ROOT = Path(__file__).parents[1]
MODULES = {
    "unet": (UNet2DConditionModel, UNetConfig),
    "vae": (AutoencoderKL, VAEConfig),
    "text_encoder": (CLIPTextModel, CLIPTextConfig),
    "text_encoder_2": (CLIPTextModel, CLIPTextConfig),
}
TORCH_MODULES = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
}
PARTS = [
    (family, component)
    for family in tiny_stable_diffusion.FAMILIES
    for component in MODULES
    if component != "text_encoder_2" or family == "sdxl"
]
CAPTIONS = (
    "",
    "a photograph of an astronaut riding a horse",
    "A  PHOTOGRAPH\n of\tan astronaut!",
    "it's 1,024 pixels wide; they're <|endoftext|> done",
    "wow! such a dog!!! !",
    "ein Mädchen im Café, 日本の庭園, кошка 🐈 e\u0301",
    "cat " * 100,
    "красная площадь " * 40,
)


@pytest.fixture
def sd15(teachers, tmp_path):
    """A folder of SD 1.5 that a test may change."""
    return shutil.copytree(teachers["sd15"], tmp_path / "sd15")


def read(path, component, variant="", **options):
    model = folder.resolve(str(path), variant=variant)
    module_class, config_class = MODULES[component]
    config = config_class.from_dict(folder.read_config(model, component))
    return folder.read_params(model, component, module_class, config, **options)


def load_in_torch(path, component):
    """What torch loads: the module, and its state dict with the keys of the published files."""
    module = TORCH_MODULES[component].from_pretrained(path / component)
    state = {}
    for key, tensor in module.state_dict().items():
        bare = "text" in component and not key.startswith("text_")
        state[f"text_model.{key}" if bare else key] = tensor
    return module, state


def assert_params_are(params, state):
    """Equal keys and bits."""
    actual = convert.to_torch(params)
    assert actual.keys() == state.keys()
    for key, tensor in state.items():
        array = actual[key]
        if array.dtype == ml_dtypes.bfloat16:
            assert tensor.dtype == torch.bfloat16
            array, tensor = array.astype(np.float32), tensor.float()
        np.testing.assert_array_equal(array, tensor.numpy(), err_msg=key, strict=True)


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
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert_params_are(params, load_in_torch(teachers[family], component)[1])


def rename(where, old, new):
    (where / old).rename(where / new)


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


def test_a_variant_beside_the_plain_weights(sd15):
    module, state = load_in_torch(sd15, "text_encoder")
    module.half().save_pretrained(sd15 / "text_encoder", variant="fp16")
    assert_params_are(read(sd15, "text_encoder"), state)
    halves = {key: tensor.half().float() for key, tensor in state.items()}
    assert_params_are(read(sd15, "text_encoder", "fp16"), halves)


def test_an_index_comes_before_a_single_file_as_in_torch(sd15):
    _, state = load_in_torch(sd15, "vae")
    shard(sd15)
    other = {key: tensor.numpy() + 1 for key, tensor in state.items()}
    weights.save_arrays(sd15 / VAE, other)
    assert_params_are(read(sd15, "vae"), state)
    in_torch = load_in_torch(sd15, "vae")[1]  # which reads no older names from shards
    np.testing.assert_array_equal(in_torch["quant_conv.weight"], state["quant_conv.weight"])


def older_flax(params, component):
    """A msgpack file as the Flax classes of diffusers and transformers named their parameters."""
    flat = {}
    for path, array in functional.flatten(params).items():
        if component != "text_encoder":
            path = re.sub(r"\.(\d+)(?=\.)", r"_\1", path)
        if component == "vae":
            for new, old in (("q", "query"), ("k", "key"), ("v", "value")):
                path = path.replace(f".to_{new}.", f".{old}.")
            path = path.replace(".to_out_0.", ".proj_attn.")
        flat[path] = np.asarray(array)
    return serialization.msgpack_serialize(functional.unflatten(flat))


@pytest.mark.parametrize(
    ("component", "sample"),
    [
        ("unet", "down_blocks_0.attentions_0.transformer_blocks_0.ff.net_2.kernel"),
        ("vae", "decoder.mid_block.attentions_0.proj_attn.kernel"),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1.kernel"),
    ],
)
def test_files_of_older_flax_classes(sd15, component, sample):
    params = read(sd15, component)
    content = older_flax(params, component)
    assert sample in functional.flatten(serialization.msgpack_restore(content))
    (file,) = (sd15 / component).glob("*.safetensors")
    file.unlink()
    name = "flax_model" if component == "text_encoder" else "diffusion_flax_model"
    (sd15 / component / f"{name}.msgpack").write_bytes(content)
    assert_params_are(read(sd15, component), dict_of_tensors(params))
    model = folder.resolve(str(sd15))
    assert len(folder.fingerprint(model, component)) == 64


def dict_of_tensors(params):
    return {key: torch.tensor(array) for key, array in convert.to_torch(params).items()}


def test_placed_one_by_one(sd15):
    seen = []

    def place(array):
        seen.append(array.nbytes)
        return (array.shape, array.dtype)

    params = read(sd15, "vae", place=place, dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert len(seen) == len(leaves) > 50
    assert {dtype for _, dtype in leaves} == {np.dtype(jnp.bfloat16)}


def test_allowed_to_be_missing(sd15):
    file = sd15 / "text_encoder" / "model.safetensors"
    arrays = weights.load_arrays(file)
    key = "text_model.final_layer_norm.bias"
    del arrays[key]
    weights.save_arrays(file, arrays)
    params = read(sd15, "text_encoder", allowed_missing=[key])
    assert set(params["text_model"]["final_layer_norm"]) == {"scale"}


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


def test_fingerprint(sd15, tmp_path):
    model = folder.resolve(str(sd15))
    first = folder.fingerprint(model, "vae")
    assert first != folder.fingerprint(model, "unet")
    file = sd15 / "vae" / "diffusion_pytorch_model.safetensors"
    arrays = weights.load_arrays(file)
    names = sorted(arrays)
    for half in (names[::2], names[1::2]):
        weights.save_arrays(sd15 / "vae" / f"{half[0]}.safetensors", {k: arrays[k] for k in half})
    index = {key: f"{names[i % 2]}.safetensors" for i, key in enumerate(names)}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": index}))
    file.unlink()
    assert folder.fingerprint(model, "vae") == first
    big = max(arrays, key=lambda key: arrays[key].size)
    for change in (0, -1):
        changed = {key: array.copy() for key, array in arrays.items()}
        changed[big].flat[change] += 1e-3
        weights.save_arrays(sd15 / "vae" / "other.safetensors", changed)
        other = weights.open_arrays(sd15 / "vae" / "other.safetensors").fingerprint()
        assert other != first


# Configurations and tokenizers


@pytest.mark.parametrize("family", tiny_stable_diffusion.FAMILIES)
def test_model_index_and_scheduler(teachers, family):
    model = folder.resolve(str(teachers[family]))
    index = folder.read_model_index(model)
    assert index.get("force_zeros_for_empty_prompt", False) == (family == "sdxl")
    scheduler = folder.read_config(model, "scheduler")
    assert scheduler == tiny_stable_diffusion.SCHEDULERS[family]


@pytest.mark.parametrize("only_tokenizer_json", [False, True])
@pytest.mark.parametrize("component", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize("family", tiny_stable_diffusion.FAMILIES)
def test_token_ids(teachers, tmp_path, family, component, only_tokenizer_json):
    if component == "tokenizer_2" and family != "sdxl":
        return
    path = teachers[family]
    reference = transformers.CLIPTokenizer.from_pretrained(path / component)
    if only_tokenizer_json:  # all that transformers 5 writes
        reference.save_pretrained(tmp_path / component)
        assert not (tmp_path / component / "vocab.json").exists()
        path = tmp_path
    tokenizer = folder.read_tokenizer(folder.Folder(path, "tiny"), component)
    ids = tokenizer(CAPTIONS)
    assert (ids.shape, ids.dtype) == ((len(CAPTIONS), 77), np.int32)
    for text, row in zip(CAPTIONS, ids, strict=True):
        expected = reference(text, padding="max_length", truncation=True, max_length=77)
        assert row.tolist() == expected["input_ids"]
    start, end = tokenizer.vocabulary - 2, tokenizer.vocabulary - 1
    pad = 0 if "sd21" in family or component == "tokenizer_2" else end
    assert ids[0].tolist() == [start, end] + [pad] * 75
    assert ids[-1, 0] == start
    assert ids[-1, -1] == end


def test_what_a_tokenizer_cuts_off(teachers, monkeypatch):
    warnings = []  # transformers warns of long texts, once for each tokenizer
    logger = logging.getLogger("transformers.tokenization_utils_base")
    monkeypatch.setattr(logger, "warning", lambda *args: warnings.append(args))
    tokenizer = folder.read_tokenizer(folder.resolve(str(teachers["sd15"])), "tokenizer")
    assert tokenizer.cut("") == ""
    assert tokenizer.cut("a " * 75) == ""
    assert tokenizer.cut("a " * 75 + "Dog") == "Dog"
    assert tokenizer.cut("a " * 75 + "Dog, é  end") == "Dog, é  end"
    for text in (CAPTIONS[-2], CAPTIONS[-1], "e\u0301 " * 80):
        tail = tokenizer.cut(text)
        assert 0 < len(tail) < len(text)
        assert text.endswith(tail)
        kept = tokenizer([text.removesuffix(tail)])[0]
        # A word that is cut in two may end in other tokens than it had.
        assert kept[:73].tolist() == tokenizer([text])[0, :73].tolist()
    assert not warnings


def test_reading_a_tokenizer_is_quiet_without_torch(teachers):
    code = f"""
import sys
sys.modules["torch"] = None  # as if it were not installed
from pathlib import Path
from slam_jax.models import folder
assert "transformers" not in sys.modules
model = folder.Folder(Path({str(teachers["sd15"])!r}), "tiny")
tokenizer = folder.read_tokenizer(model, "tokenizer")
assert tokenizer(["a " * 100]).shape == (1, 77)
assert tokenizer.cut("a " * 100)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRANSFORMERS_VERBOSITY"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# Refusals: each changes a good folder, reads a part of it, and names the file.


def edit_json(file, **changes):
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


def edit_header(file, edit):
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def truncate(file, size):
    os.truncate(file, size)


def edit_arrays(file, edit):
    arrays = weights.load_arrays(file)
    edit(arrays)
    weights.save_arrays(file, arrays)


def shard(path):
    """Two shards and their index, in place of the VAE's one file; returns the three."""
    file = path / "vae" / "diffusion_pytorch_model.safetensors"
    arrays = weights.load_arrays(file)
    file.unlink()
    names = sorted(arrays)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = [file.with_name(f"{file.stem}-0000{i + 1}-of-00002.safetensors") for i in range(2)]
    weight_map = {}
    for part, keys in zip(files, halves, strict=True):
        weights.save_arrays(part, {key: arrays[key] for key in keys})
        weight_map |= dict.fromkeys(keys, part.name)
    index = file.with_name(f"{file.name}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return *files, index


def read_index(path):
    folder.read_model_index(folder.resolve(str(path)))


def read_vae(path):
    read(path, "vae")


def read_vae_fp16(path):
    read(path, "vae", "fp16")


def read_text_encoder(path):
    read(path, "text_encoder")


def read_tokenizer(path):
    folder.read_tokenizer(folder.resolve(str(path)), "tokenizer")


def assert_refused(action, path, file, *parts):
    with pytest.raises(InputError) as caught:
        action(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path / file))
    for part in parts:
        assert part in message
    return message


VAE, VAE_INDEX = (f"vae/diffusion_pytorch_model.safetensors{end}" for end in ("", ".index.json"))
SHARDS = [f"vae/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
CLIP = "text_encoder/model.safetensors"
BIAS = "decoder.conv_in.bias"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"_class_name": "FluxPipeline"}, ["'FluxPipeline'", "StableDiffusionXLPipeline"]),
        ({"_class_name": None}, ["None"]),
        ({"_class_name": "StableDiffusionXLPipeline"}, ["text_encoder_2 is None"]),
        ({"unet": ["diffusers", "UNet2DModel"]}, ["unet is UNet2DModel", "UNet2DCond"]),
        ({"unet": [None, None]}, ["unet is None"]),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, ["vae is AutoencoderTiny", "AutoencoderKL"]),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, ["T5EncoderModel"]),
        ({"tokenizer": ["transformers", "T5Tokenizer"]}, ["T5Tokenizer", "CLIPTokenizer"]),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, ["text_encoder_2", "is not sup"]),
        ({"controlnet": ["diffusers", "ControlNetModel"]}, ["controlnet (ControlNetModel)"]),
    ],
)
def test_refused_model_indices(sd15, changes, parts):
    edit_json(sd15 / "model_index.json", **changes)
    assert_refused(read_index, sd15, "model_index.json", *parts)


def test_accepted_model_indices(sd15):
    file = sd15 / "model_index.json"
    edit_json(file, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    read_index(sd15)
    edit_json(file, unet=["diffusers", "FlaxUNet2DConditionModel"])
    edit_json(file, _class_name="FlaxStableDiffusionPipeline")
    read_index(sd15)


@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json"])
def test_refused_json(sd15, name):
    action = read_index if "index" in name else read_vae
    file = sd15 / name
    for content, part in (
        (b'{"a": 1,}', "broken JSON"),
        (b"", "broken JSON"),
        (b"\xff\xfe", "broken JSON"),
        (b"[1]", "expected a JSON object, found a list"),
    ):
        file.write_bytes(content)
        assert_refused(action, sd15, name, part)
    file.unlink()
    assert_refused(action, sd15, name, "missing")
    file.mkdir()
    assert_refused(action, sd15, name, "cannot be read", "directory")
    shutil.rmtree(file.parent)
    with pytest.raises(InputError, match="no such folder" if "index" in name else "missing"):
        action(sd15)


# (what is done to the folder, what is read, the file named, parts of the message)
REFUSED_WEIGHTS = {
    "no file": (lambda p: (p / VAE).unlink(), read_vae, VAE, ["missing"]),
    "no variant": (
        lambda p: None,
        read_vae_fp16,
        "vae",
        ["of variant 'fp16' are asked for, those of no variant", "set variant to ''"],
    ),
    "a variant only": (
        lambda p: rename(p, VAE, VAE.replace(".safe", ".fp16.safe")),
        read_vae,
        "vae",
        ["of no variant are asked for, those of variant 'fp16'", "set variant to 'fp16'"],
    ),
    "an empty file": (lambda p: truncate(p / VAE, 0), read_vae, VAE, ["not a safetensors file"]),
    "no safetensors": (
        lambda p: (p / VAE).write_bytes(b"PK\3\4" * 1000),
        read_vae,
        VAE,
        ["not a safetensors file"],
    ),
    "a page of HTML": (
        lambda p: (p / VAE).write_bytes(b"\x20\0\0\0\0\0\0\0" + b"<html>" * 50),
        read_vae,
        VAE,
        ["not a safetensors file (Expecting value"],
    ),
    "cut in the header": (lambda p: truncate(p / VAE, 99), read_vae, VAE, ["truncated at 99"]),
    "cut in an array": (
        lambda p: truncate(p / VAE, (p / VAE).stat().st_size - 1),
        read_vae,
        VAE,
        ["truncated", "bytes", "download it again"],
    ),
    "too long": (
        lambda p: (p / VAE).write_bytes((p / VAE).read_bytes() + b"\0"),
        read_vae,
        VAE,
        ["expected"],
    ),
    "an unknown dtype": (
        lambda p: edit_header(p / VAE, lambda header: header[BIAS].update(dtype="F4")),
        read_vae,
        VAE,
        ["dtype F4, supported: F64"],
    ),
    "impossible offsets": (
        lambda p: edit_header(p / VAE, lambda header: header[BIAS].update(shape=[2])),
        read_vae,
        VAE,
        ["F32 [2] cannot be bytes"],
    ),
    "a missing key": (
        lambda p: edit_arrays(p / VAE, lambda arrays: arrays.pop(BIAS)),
        read_vae,
        VAE,
        [f"1 keys missing ({BIAS})", "not those of vae/config.json"],
    ),
    "many keys of another model": (
        lambda p: edit_arrays(p / VAE, lambda a: a.update({f"x.{i}": a[BIAS] for i in range(5)})),
        read_vae,
        VAE,
        ["5 keys not expected (x.0, x.1, x.2, ...)"],
    ),
    "another shape": (
        lambda p: edit_json(p / "text_encoder/config.json", intermediate_size=48),
        read_text_encoder,
        CLIP,
        ["fc1.bias has shape (64,), expected (48,)", "not those of text_encoder/config.json"],
    ),
    "no shard": (
        lambda p: shard(p)[1].unlink(),
        read_vae,
        SHARDS[1],
        ["missing", "index.json lists it"],
    ),
    "a truncated shard": (lambda p: truncate(shard(p)[0], 9999), read_vae, SHARDS[0], ["truncat"]),
    "a key that no shard has": (
        lambda p: edit_arrays(shard(p)[0], lambda arrays: arrays.pop(BIAS)),
        read_vae,
        SHARDS[0],
        ["1 keys differ", f"first {BIAS} (the index only)"],
    ),
    "a key that the index lacks": (
        lambda p: edit_arrays(shard(p)[0], lambda arrays: arrays.update(a=arrays[BIAS])),
        read_vae,
        SHARDS[0],
        ["1 keys differ", "first a (the file only)"],
    ),
    "an index of nothing": (
        lambda p: shard(p)[2].write_text("{}"),
        read_vae,
        VAE_INDEX,
        ["no index of safetensors files"],
    ),
    "an index that leads elsewhere": (
        lambda p: edit_json(shard(p)[2], weight_map={BIAS: "../../secret"}),
        read_vae,
        VAE_INDEX,
        ["'../../secret'", "beside the index"],
    ),
    "broken msgpack": (
        lambda p: rename(p, VAE, "vae/diffusion_flax_model.msgpack"),
        read_vae,
        "vae/diffusion_flax_model.msgpack",
        ["not a file of Flax weights"],
    ),
}


@pytest.mark.parametrize("case", REFUSED_WEIGHTS)
def test_refused_weights(sd15, case):
    change, action, file, parts = REFUSED_WEIGHTS[case]
    change(sd15)
    assert_refused(action, sd15, file, *parts)


def test_a_file_that_shrinks_while_it_is_read(sd15):
    lazy = weights.open_arrays(sd15 / VAE)
    truncate(sd15 / VAE, 9999)
    assert_refused(lambda path: dict(lazy), sd15, VAE, "became shorter")
    (sd15 / VAE).unlink()
    assert_refused(lambda path: dict(lazy), sd15, VAE, "cannot be read", "No such file")


def test_pickles_are_refused_with_a_command_that_converts_them(sd15):
    """The command runs as it is printed, with tensors that share memory, and the result loads."""
    where = sd15 / "text_encoder"
    _, state = load_in_torch(sd15, "text_encoder")
    first, second = (f"text_model.encoder.layers.{i}.layer_norm1.bias" for i in (0, 1))
    state[first] = state[second]
    torch.save(state, where / "pytorch_model.bin")
    torch.save({"nothing": torch.ones(1)}, where / "pytorch_model.fp16.bin")
    (where / "model.safetensors").unlink()
    file = "text_encoder/pytorch_model.bin"
    message = assert_refused(read_text_encoder, sd15, file, "pickle", "any code")
    command = message.partition("convert it with: ")[2]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path}, timeout=300)
    assert_params_are(read(sd15, "text_encoder"), state)


def test_a_checkpoint_of_another_kind_is_refused(sd15):
    rename(sd15, VAE, "vae/model.ckpt")
    assert_refused(read_vae, sd15, "vae/model.ckpt", "pickle", "python -c")


@pytest.mark.parametrize(
    ("change", "file", "part"),
    [
        (lambda p: (p / "vocab.json").unlink(), "tokenizer/vocab.json", "missing"),
        (lambda p: (p / "merges.txt").unlink(), "tokenizer/merges.txt", "missing"),
        (
            lambda p: (p / "tokenizer_config.json").unlink(),
            "tokenizer/tokenizer_config.json",
            "missing",
        ),
        (lambda p: shutil.rmtree(p), "tokenizer/tokenizer_config.json", "missing"),
        (
            lambda p: edit_json(p / "tokenizer_config.json", model_max_length=10**30),
            "tokenizer/tokenizer_config.json",
            "model_max_length is 1000",
        ),
        (lambda p: (p / "vocab.json").write_text("{"), "tokenizer", "not a CLIP tokenizer ("),
        (lambda p: (p / "merges.txt").write_text("a b c d\n" * 3), "tokenizer", "not a CLIP"),
    ],
)
def test_refused_tokenizers(sd15, change, file, part):
    change(sd15 / "tokenizer")
    assert_refused(read_tokenizer, sd15, file, part)


def test_a_part_that_was_not_fetched(sd15):
    """A snapshot of the hub holds what was asked for, which may not be all there is."""
    (sd15 / VAE).unlink()
    model = folder.Folder(sd15, "owner/tiny", "c" * 40, "fp16")
    with pytest.raises(InputError, match=r"fetched for variant 'fp16'"):
        folder.fingerprint(model, "vae")
