"""The judge of captions: its loss against that of transformers, and a tiny one trained and read."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tar_files
import tiny_networks
import torch
import transformers
from helpers import assert_close
from jax.sharding import PartitionSpec

from slam_jax.features.registry import open_network
from slam_jax.features.resize import CLIP_MEAN, CLIP_STD
from slam_jax.features.weights import read_arrays, to_params
from slam_jax.formats import convert
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextModel
from slam_jax.models.clip_vision import CLIPVisionModel, read_config
from slam_jax.parallel.sharding import AXES, make_mesh

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The scripts import each other as files of one folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_loss_and_gradient_are_those_of_transformers_on_any_mesh(tmp_path):
    import contrastive

    model = tiny_networks.clip_folder(tmp_path, width=12, image_size=24, patch_size=8)
    text, vision = read_config(json.loads((tmp_path / "config.json").read_text()))
    file = tmp_path / "model.safetensors"
    abstract = functional.abstract_params(CLIPTextModel, text)
    abstract |= functional.abstract_params(CLIPVisionModel, vision)
    params = to_params(file, read_arrays(file), abstract, ["logit_scale"])
    params["logit_scale"] = read_arrays(file)["logit_scale"]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 24, 24, 3)).astype(np.uint8)
    tokens = rng.integers(1, text.vocab_size - 2, (16, 9)).astype(np.int32)
    tokens[:, -1] = text.eos_token_id

    pixels = (images / 255 - CLIP_MEAN) / CLIP_STD
    pixels = torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2))
    ids = torch.from_numpy(tokens).long()
    expected = model(input_ids=ids, pixel_values=pixels, return_loss=True).loss
    expected.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    loss = contrastive.contrastive_loss(text, vision)
    batch, rows = {"images": images, "tokens": tokens}, PartitionSpec(AXES)

    def on_device(params, batch, examples):
        def total(params):
            return loss(params, None, None, batch, examples, jax.random.key(0))[0].sum() / 16

        return jax.lax.psum(jax.value_and_grad(total)(params), AXES)

    for devices in (1, 8):
        mesh = make_mesh(devices=jax.devices()[:devices])
        step = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(PartitionSpec(), rows, rows),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        value, found = jax.jit(step)(params, batch, jnp.arange(16))
        assert float(value) == pytest.approx(float(expected.detach()), rel=1e-4)
        for name, array in convert.to_torch(found).items():
            size = np.abs(gradients[name]).max()
            difference = np.abs(array.reshape(gradients[name].shape) - gradients[name]).max()
            assert difference <= 1e-3 * size + 1e-6, (devices, name)


def test_pictures_are_moved_and_coloured_each_in_its_own_way():
    import contrastive

    images = np.arange(4 * 8 * 8 * 3).reshape(4, 8, 8, 3).astype(np.uint8)
    key, examples = jax.random.key(0), jnp.arange(4)
    plain = contrastive.augmented(images, examples, key, 0, 0.0)
    assert_close(plain, (images / 255 - CLIP_MEAN) / CLIP_STD, 1e-5)
    moved = np.asarray(contrastive.augmented(images, examples, key, 2, 0.0))
    around = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    around = (around / 255 - CLIP_MEAN) / CLIP_STD
    places = set()
    for picture, wide in zip(moved, around, strict=True):
        (place,) = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.allclose(picture, wide[top : top + 8, left : left + 8], atol=1e-5)
        ]
        places.add(place)
    assert len(places) > 1
    grey = np.full((4, 8, 8, 3), 100, np.uint8)
    coloured = np.asarray(contrastive.augmented(grey, examples, key, 0, 0.2)) * CLIP_STD
    factors = (coloured + CLIP_MEAN)[:, 0, 0] / (100 / 255)
    assert 0.8 <= factors.min() < 0.95 and 1.05 < factors.max() <= 1.2
    assert len(np.unique(factors.round(4))) == 12


@pytest.fixture
def emoji(tmp_path):
    """A folder as slam-jax prepare emoji makes it."""
    folder = tmp_path / "emoji"
    for split, begin, count in (("train", 0, 24), ("held_out", 24, 8)):
        tar = tar_files.tar(tar_files.good(count, begin))
        tar_files.write(folder / split, {"noto.tar": tar})
    record = {"format": 1, "styles": {"noto": {"train": 24, "held_out": 8}}}
    (folder / "emoji.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def arguments(emoji, tmp_path):
    arguments = ["--data", f"emoji:{emoji}", "--out", str(tmp_path / "judge")]
    arguments += ["--index", str(tmp_path / "index"), "--steps", "50", "--batch-size", "24"]
    arguments += ["--resolution", "8", "--width", "16", "--layers", "1", "--text-layers", "1"]
    return [*arguments, "--shift", "0", "--learning-rate", "0.01"]


@pytest.mark.nightly
def test_a_judge_is_what_transformers_reads_and_learns_its_pictures(arguments, tmp_path, capsys):
    import train_judge

    train_judge.main(arguments)
    out = tmp_path / "judge"
    report = json.loads((out / "judge.json").read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert report["train"]["choices"] == 24 and report["held_out"]["choices"] == 8
    assert report["train"]["retrieval"] > 8 / 24

    network = open_network("clip_own", str(out))
    model = transformers.CLIPModel.from_pretrained(out).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(out)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    x = np.stack([network.prepare(image) for image in images])
    texts = ["caption 3", "a caption that no one has seen", ""]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    np.testing.assert_array_equal(network.tokens(texts), ids)
    with torch.no_grad():
        seen = model.vision_model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).pooler_output
        seen = model.visual_projection(seen).numpy()
        read = model.text_projection(model.text_model(ids).pooler_output).numpy()
    assert_close(jax.jit(network.apply)(network.params, x), seen, 1e-4)
    assert_close(jax.jit(network.apply_text)(network.params, ids.numpy()), read, 1e-4)

    # The same command goes on, here with nothing to do; another one is refused.
    before = read_arrays(out / "model.safetensors")["logit_scale"]
    train_judge.main(arguments)
    assert read_arrays(out / "model.safetensors")["logit_scale"] == before
    with pytest.raises(SystemExit, match=f"^error: {out}: made with other options"):
        train_judge.main([*arguments, "--seed", "1"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["--patch", "3"], "patch_size = 3, supported: divisors of image_size"),
        (["--batch-size", "12"], "--batch-size = 12, expected a multiple of the 8 devices"),
        (["--learning-rate", "0"], "--learning-rate = 0.0, expected a number above 0"),
        (["--held-out", "test"], "split = 'test', expected one of train, held_out"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    arguments, change, expected, tmp_path
):
    import train_judge

    with pytest.raises(SystemExit) as stop:
        train_judge.main([*arguments, *change])
    line = stop.value.code
    assert line.startswith("error: ") and expected in line and "\n" not in line
    assert not (tmp_path / "judge").exists()


def test_another_folder_is_left_alone(arguments, tmp_path):
    import train_judge

    (tmp_path / "judge").mkdir()
    (tmp_path / "judge/notes.txt").touch()
    with pytest.raises(SystemExit, match="judge: not empty, and no judge; choose another --out"):
        train_judge.main(arguments)
    assert [path.name for path in (tmp_path / "judge").iterdir()] == ["notes.txt"]
