"""What is wrong with a model folder is said in one line: each test breaks a good one."""

import json
import os
import shutil

import diffusers
import pytest
import torch
from tiny_folders import VAE, assert_params_are, load_in_torch, read, rename, shard

from slam_jax.base.errors import InputError
from slam_jax.formats import diffusers_folder as folder
from slam_jax.formats import safetensors as weights


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


def edit_arrays(file, edit):
    arrays = weights.load_arrays(file)
    edit(arrays)
    weights.save_arrays(file, arrays)


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


VAE_INDEX = f"{VAE}.index.json"
SHARDS = [f"vae/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
CLIP, TOKENIZER = "text_encoder/model.safetensors", "tokenizer/tokenizer_config.json"
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
def test_refused_model_indices(changeable, changes, parts):
    edit_json(changeable / "model_index.json", **changes)
    assert_refused(read_index, changeable, "model_index.json", *parts)


def test_accepted_model_indices(changeable):
    file = changeable / "model_index.json"
    edit_json(file, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    read_index(changeable)


@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json"])
def test_refused_json(changeable, name):
    action = read_index if "index" in name else read_vae
    file = changeable / name
    for content, part in (
        (b'{"a": 1,}', "damaged (Expecting property name"),
        (b"", "damaged (Expecting value"),
        (b"\xff\xfe", "damaged ('utf-8' codec"),
        (b"[1]", "damaged (expected a JSON object, found a list); a diffusers model folder has it"),
    ):
        file.write_bytes(content)
        assert_refused(action, changeable, name, part)
    file.unlink()
    assert_refused(action, changeable, name, "cannot be read (No such file", "get it again")
    file.mkdir()
    assert_refused(action, changeable, name, "cannot be read (Is a directory)")
    shutil.rmtree(file.parent)
    with pytest.raises(InputError, match="no such folder" if "index" in name else "No such file"):
        action(changeable)


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
    "an empty file": (
        lambda p: os.truncate(p / VAE, 0),
        read_vae,
        VAE,
        ["truncated or no safetensors file"],
    ),
    "no safetensors": (
        lambda p: (p / VAE).write_bytes(b"PK\3\4" * 1000),
        read_vae,
        VAE,
        ["truncated or no safetensors file"],
    ),
    "a page of HTML": (
        lambda p: (p / VAE).write_bytes(b"\x20\0\0\0\0\0\0\0" + b"<html>" * 50),
        read_vae,
        VAE,
        ["no safetensors file", "invalid JSON"],
    ),
    "cut in the header": (lambda p: os.truncate(p / VAE, 99), read_vae, VAE, ["truncated"]),
    "cut in an array": (
        lambda p: os.truncate(p / VAE, (p / VAE).stat().st_size - 1),
        read_vae,
        VAE,
        ["truncated", "not fully covered", "get it again"],
    ),
    "too long": (
        lambda p: (p / VAE).write_bytes((p / VAE).read_bytes() + b"\0"),
        read_vae,
        VAE,
        ["not fully covered"],
    ),
    "an unknown dtype": (
        lambda p: edit_header(
            p / VAE,
            lambda header: header[BIAS].update(dtype="C64", shape=[header[BIAS]["shape"][0] // 2]),
        ),
        read_vae,
        VAE,
        [f"{BIAS} has dtype C64, supported: F64"],
    ),
    "impossible offsets": (
        lambda p: edit_header(p / VAE, lambda header: header[BIAS].update(shape=[2])),
        read_vae,
        VAE,
        ["invalid shape"],
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
        ["cannot be read", "No such file"],
    ),
    "a truncated shard": (
        lambda p: os.truncate(shard(p)[0], 9999),
        read_vae,
        SHARDS[0],
        ["truncat"],
    ),
    "a key that no shard has": (
        lambda p: edit_arrays(shard(p)[0], lambda arrays: arrays.pop(BIAS)),
        read_vae,
        VAE_INDEX,
        ["1 keys differ", f"first {BIAS} (the index only)"],
    ),
    "a key that the index lacks": (
        lambda p: edit_arrays(shard(p)[0], lambda arrays: arrays.update(a=arrays[BIAS])),
        read_vae,
        VAE_INDEX,
        ["1 keys differ", "first a (a file only)"],
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
    "msgpack": (
        lambda p: rename(p, VAE, "vae/diffusion_flax_model.msgpack"),
        read_vae,
        "vae/diffusion_flax_model.msgpack",
        ["weights of Flax classes", "from_flax=True"],
    ),
}


@pytest.mark.parametrize("case", REFUSED_WEIGHTS)
def test_refused_weights(changeable, case):
    change, action, file, parts = REFUSED_WEIGHTS[case]
    change(changeable)
    assert_refused(action, changeable, file, *parts)


def test_a_file_that_shrinks_while_it_is_read(changeable):
    lazy = weights.open_arrays(changeable / VAE)
    os.truncate(changeable / VAE, 9999)
    assert_refused(lambda path: dict(lazy), changeable, VAE, "became shorter")
    (changeable / VAE).unlink()
    assert_refused(lambda path: dict(lazy), changeable, VAE, "cannot be read", "No such file")


def test_pickles_are_refused_with_what_converts_them(changeable, tmp_path):
    """What the message says runs as it is printed, and the result loads."""
    where = changeable / "text_encoder"
    _, state = load_in_torch(changeable, "text_encoder")
    torch.save(state, where / "pytorch_model.bin")
    (where / "model.safetensors").unlink()
    file = "text_encoder/pytorch_model.bin"
    message = assert_refused(read_text_encoder, changeable, file, "pickle", "any code")
    conversion = message.partition("author: ")[2]
    eval(conversion, {"diffusers": diffusers, "another_folder": tmp_path / "converted"})
    assert_params_are(read(tmp_path / "converted", "text_encoder"), state)


@pytest.mark.parametrize(
    ("change", "file", "part"),
    [
        (lambda p: (p / "vocab.json").unlink(), "tokenizer/vocab.json", "missing"),
        (lambda p: (p / "merges.txt").unlink(), "tokenizer/merges.txt", "missing"),
        (lambda p: (p / "tokenizer_config.json").unlink(), TOKENIZER, "No such file"),
        (lambda p: shutil.rmtree(p), TOKENIZER, "No such file"),
        (
            lambda p: edit_json(p / "tokenizer_config.json", model_max_length=10**30),
            TOKENIZER,
            "model_max_length is 1000",
        ),
        (lambda p: (p / "vocab.json").write_text("{"), "tokenizer", "not a CLIP tokenizer ("),
        (lambda p: (p / "merges.txt").write_text("a b c d\n" * 3), "tokenizer", "not a CLIP"),
    ],
)
def test_refused_tokenizers(changeable, change, file, part):
    change(changeable / "tokenizer")
    assert_refused(read_tokenizer, changeable, file, part)


def test_a_part_that_was_not_fetched(changeable):
    """A snapshot of the hub holds what was asked for, which may not be all there is."""
    (changeable / VAE).unlink()
    model = folder.Folder(changeable, "owner/tiny", "c" * 40, "fp16")
    with pytest.raises(InputError, match=r"fetched for variant 'fp16'"):
        folder.fingerprints(model)
