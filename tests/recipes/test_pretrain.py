"""A small Stable Diffusion trained from nothing: whole, drawn by the stock pipeline, killed and
gone on with, and refused where something does not fit."""

import json
import shutil

import jax
import numpy as np
import pytest
import tar_files
from helpers import interrupt_in_step
from stock_pipeline import drawn_by_both

from slam_jax.base.errors import InputError
from slam_jax.commands import pretrain as command
from slam_jax.config.command_line import read_recipe
from slam_jax.config.pretraining import Pretraining, default_pretraining
from slam_jax.config.validate import freeze
from slam_jax.formats import safetensors
from slam_jax.models.vae import VAEConfig
from slam_jax.recipes.pretrain import pretrain

COUNT, SIZE = 20, 16


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The arguments of a run."""
    folder = tmp_path_factory.mktemp("pictures")
    tar_files.write(folder, {"0.tar": tar_files.tar(tar_files.good(COUNT))})
    size = f"--config.data.resolution={SIZE}"
    return ["--config", "emoji_teacher:tiny", f"--config.data.source={folder}", size]


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    command.main([*recipe, "--workdir", str(workdir)])
    return workdir


def weights_of(teacher):
    return {
        name: dict(safetensors.open_arrays(file).items())
        for name in ("unet", "vae", "text_encoder")
        for file in (teacher / name).glob("*.safetensors")
    }


@pytest.mark.slow
def test_the_stock_pipeline_draws_what_we_draw(trained):
    drawn, theirs = drawn_by_both(trained / "teacher", ["a picture", "another one"], 3)
    assert drawn.shape == (2, SIZE, SIZE, 3) and np.abs(drawn - theirs).max() < 2 / 255
    assert theirs.std() > 0.01


@pytest.mark.slow
def test_both_networks_were_trained_and_the_autoencoder_was_before(trained):
    before, after = (weights_of(trained / name) for name in ("untrained", "teacher"))
    changed = {
        part: [
            np.any(array.astype(np.float16) != after[part][key]) for key, array in arrays.items()
        ]
        for part, arrays in before.items()
    }
    assert not any(changed["vae"])
    # Padding and positions behind the end of a text may have no part in a loss.
    assert np.mean(changed["unet"]) > 0.95 and np.mean(changed["text_encoder"]) > 0.95
    facts = json.loads((trained / "teacher" / "facts.json").read_text())
    assert facts["pictures"] == COUNT and 0 < facts["psnr"] < 60
    scale = json.loads((trained / "teacher" / "vae" / "config.json").read_text())["scaling_factor"]
    assert scale != VAEConfig().scaling_factor


@pytest.mark.nightly
def test_a_run_that_is_stopped_twice_goes_on_to_the_same_teacher(
    trained, recipe, tmp_path, monkeypatch
):
    arguments = [*recipe, "--workdir", str(tmp_path / "run")]
    # In the autoencoder's third step; then in its last one and two of the UNet's.
    for more in ([], ["--resume"]):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            interrupt_in_step(patch, 3)
            command.main([*arguments, *more])
        assert stop.value.code == 130 and not (tmp_path / "run" / "teacher").exists()
    command.main([*arguments, "--resume"])
    expected, found = (weights_of(run / "teacher") for run in (trained, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
def test_a_finished_run_is_left_alone(trained, recipe, tmp_path, capsys):
    workdir = shutil.copytree(trained, tmp_path / "run")
    before = (workdir / "teacher" / "unet" / "config.json").stat().st_mtime_ns
    command.main([*recipe, "--workdir", str(workdir), "--resume"])
    assert (workdir / "teacher" / "unet" / "config.json").stat().st_mtime_ns == before
    assert str(workdir / "teacher") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("--config.tokens.vocabulary=500", ["config.tokens.vocabulary = 500", "514 or more"]),
        ("--config.dropout=0.0", ["config.dropout = 0.0", "above 0"]),
        (
            "--config.text_encoder.num_attention_heads=3",
            ["config.text_encoder", "num_attention_heads = 3"],
        ),
        ("--config.training.sample_every=5", ["config.training.sample_every = 5"]),
        ("--config.training.batch_size=12", ["config.training.batch_size = 12", "8 devices"]),
        ("--config.unet.norm_num_groups=3", ["config.unet"]),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    recipe, tmp_path, change, expected
):
    with pytest.raises(SystemExit) as stop:
        command.main([*recipe, change, "--workdir", str(tmp_path / "run")])
    line = stop.value.code
    assert line.startswith("error: ") and "\n" not in line and not (tmp_path / "run").exists()
    assert all(text in line for text in expected), line


def test_a_text_encoder_that_is_too_short_for_the_prompts_is_refused(tmp_path):
    config = read_recipe("emoji_teacher:tiny")
    with config.unlocked():
        config.text_encoder.max_position_embeddings = 15
    config.data.source = "photographs"
    expected = r"max_position_embeddings = 15, expected config.tokens.length = 16 or more"
    with pytest.raises(InputError, match=expected):
        pretrain(freeze(config, Pretraining), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_recipe_of_the_emoji_is_one():
    config = freeze(read_recipe("emoji_teacher"), Pretraining)
    assert config.dtype == "float16" and default_pretraining().dtype == "float32"
