"""A small Stable Diffusion 1 and 3 trained from nothing: whole, drawn by the stock pipeline, killed
and gone on with, and refused where something does not fit."""

import json
import re
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
from slam_jax.data.prepared import Prepared
from slam_jax.families.registry import UNTRAINED
from slam_jax.families.sd3_folder import read_network
from slam_jax.formats import safetensors
from slam_jax.models import functional
from slam_jax.models.mmdit import SD3Transformer2DModel
from slam_jax.recipes.pretrain import pretrain

COUNT, SIZE = 20, 16


# Arrays that nothing depends on: places are given, and in the last block text tokens do not ask.
WITHOUT_GRADIENT = re.compile(
    r"pos_embed\.pos_embed|transformer_blocks\.1\.attn\.(add_q_|norm_added_q)"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The arguments of a run that say what it is trained on."""
    folder = tmp_path_factory.mktemp("pictures")
    tar_files.write(folder, {"0.tar": tar_files.tar(tar_files.good(COUNT))})
    return [f"--config.data.source={folder}", f"--config.data.resolution={SIZE}"]


@pytest.fixture(scope="module")
def recipe(data):
    """The arguments of a run."""
    return ["--config", "emoji_teacher:tiny", *data]


FLOW = pytest.param("emoji_flow_teacher", marks=pytest.mark.nightly)


@pytest.fixture(scope="module", params=["emoji_teacher", FLOW])
def whole_run(request, data, tmp_path_factory):
    """The arguments of a run, and its folder."""
    recipe = ["--config", f"{request.param}:tiny", *data]
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    command.main([*recipe, "--workdir", str(workdir)])
    return recipe, workdir


def weights_of(teacher):
    return {
        file.parent.name: dict(safetensors.open_arrays(file).items())
        for file in teacher.glob("*/*.safetensors")
    }


@pytest.mark.slow
def test_the_stock_pipeline_draws_what_we_draw(whole_run):
    teacher = whole_run[1] / "teacher"
    drawn, theirs = drawn_by_both(teacher, ["a picture", "another one"], 3)
    assert drawn.shape == (2, SIZE, SIZE, 3) and np.abs(drawn - theirs).max() < 2 / 255
    assert theirs.std() > 0.01


@pytest.mark.slow
def test_all_networks_were_trained_and_the_autoencoder_was_before(whole_run):
    trained = whole_run[1]
    before, after = (weights_of(trained / name) for name in ("untrained", "teacher"))
    changed = {
        part: [
            np.any(array.astype(np.float16) != after[part][key])
            for key, array in arrays.items()
            if not WITHOUT_GRADIENT.match(key)
        ]
        for part, arrays in before.items()
    }
    assert not any(changed.pop("vae"))
    texts = {name for name in changed if name.startswith("text_encoder")}
    assert changed.keys() - texts in ({"unet"}, {"transformer"})
    assert len(texts) == (2 if "transformer" in changed else 1)
    # Padding and positions behind the end of a text may have no part in a loss.
    assert min(map(np.mean, changed.values())) > 0.95
    if "transformer" in changed:  # two that are no copies of one another
        key = "text_model.encoder.layers.0.mlp.fc1.weight"
        assert not np.allclose(before["text_encoder"][key], before["text_encoder_2"][key])
    facts = json.loads((trained / "teacher" / "facts.json").read_text())
    assert facts["pictures"] == COUNT and 0 < facts["psnr"] < 60


@pytest.mark.slow
def test_the_latents_that_a_denoiser_sees_have_mean_0_and_deviation_1(whole_run):
    """Stable Diffusion 1 does not shift them."""
    latents = Prepared(whole_run[1] / "latents")
    moments = latents.read(np.arange(COUNT), np.arange(COUNT))[0]["moments"].astype(np.float64)
    mean, logvar = np.split(moments, 2, axis=-1)
    config = json.loads((whole_run[1] / "teacher" / "vae" / "config.json").read_text())
    scale, shift = config["scaling_factor"], config.get("shift_factor") or 0
    variance = np.exp(logvar).mean() + mean.var()
    assert scale * variance**0.5 == pytest.approx(1, rel=2e-3)
    is_sd3 = "transformer" in weights_of(whole_run[1] / "teacher")
    assert (config.get("shift_factor") is not None) == is_sd3
    if is_sd3:
        assert scale * (mean.mean() - shift) == pytest.approx(0, abs=2e-3)


@pytest.mark.nightly
def test_a_run_that_is_stopped_twice_goes_on_to_the_same_teacher(whole_run, tmp_path, monkeypatch):
    recipe, trained = whole_run
    arguments = [*recipe, "--workdir", str(tmp_path / "run")]
    # In the autoencoder's third step; then in its last one and two of the denoiser's.
    for more in ([], ["--resume"]):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            interrupt_in_step(patch, 3)
            command.main([*arguments, *more])
        assert stop.value.code == 130 and not (tmp_path / "run" / "teacher").exists()
    command.main([*arguments, "--resume"])
    expected, found = (weights_of(run / "teacher") for run in (trained, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
def test_a_finished_run_is_left_alone(whole_run, tmp_path, capsys):
    recipe, trained = whole_run
    workdir = shutil.copytree(trained, tmp_path / "run")
    before = (workdir / "teacher" / "model_index.json").stat().st_mtime_ns
    command.main([*recipe, "--workdir", str(workdir), "--resume"])
    assert (workdir / "teacher" / "model_index.json").stat().st_mtime_ns == before
    assert str(workdir / "teacher") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("--config.tokens.vocabulary=500", ["config.tokens.vocabulary = 500", "at least 514"]),
        ("--config.dropout=0.0", ["config.dropout = 0.0", "above 0"]),
        (
            "--config.text_encoder.num_attention_heads=3",
            ["config.text_encoder", "num_attention_heads = 3"],
        ),
        ("--config.training.sample_every=5", ["config.training.sample_every = 5"]),
        ("--config.training.batch_size=12", ["config.training.batch_size = 12", "8 devices"]),
        ("--config.unet.norm_num_groups=3", ["config.unet"]),
        ("--config.family=flux", ["config.family = 'flux'", "stable_diffusion, sd3"]),
        (
            "--config.family=sd3",
            ["config.unet = ", "expected nothing: the family sd3 has a transformer"],
        ),
        (
            "--config.prediction_type=flow",
            ["config.prediction_type = 'flow', expected epsilon or v_prediction or sample"],
        ),
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


@pytest.mark.parametrize("values", [{"joint_attention_dim": 40}, {"in_channels": 3}])
def test_what_follows_from_other_networks_is_not_told_otherwise(tmp_path, values):
    config = read_recipe("emoji_flow_teacher:tiny")
    with config.unlocked():
        config.transformer.update(values)
    config.data.source = "photographs"
    ((key, value),) = values.items()
    with pytest.raises(InputError, match=rf"^config.transformer.{key} = {value}, expected \d+, wh"):
        pretrain(freeze(config, Pretraining), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pictures_that_are_no_whole_patches_are_refused(tmp_path):
    config = read_recipe("emoji_flow_teacher:tiny")
    config.data.update(source="photographs", resolution=24)
    levels = ("down_block_types", "up_block_types", "block_out_channels")
    config.autoencoder.network.update({key: 2 * config.autoencoder.network[key] for key in levels})
    expected = "^config.data.resolution = 24, expected a multiple of 16, .* one patch of latents$"
    with pytest.raises(InputError, match=expected):
        pretrain(freeze(config, Pretraining), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_text_encoder_that_is_too_short_for_the_prompts_is_refused(tmp_path):
    config = read_recipe("emoji_teacher:tiny")
    with config.unlocked():
        config.text_encoder.max_position_embeddings = 15
    config.data.source = "photographs"
    expected = r"max_position_embeddings = 15, expected config.tokens.length = 16 or more"
    with pytest.raises(InputError, match=expected):
        pretrain(freeze(config, Pretraining), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "--config.transformer.attention_head_dim=7",
            ["config.transformer: attention_head_dim = 7", "a multiple of 4"],
        ),
        (
            "--config.prediction_type=epsilon",
            ["config.prediction_type = 'epsilon', expected flow for the family sd3"],
        ),
        (
            "--config.family=stable_diffusion",
            ["config.transformer = ", "the family stable_diffusion has a unet"],
        ),
    ],
)
def test_what_does_not_fit_a_transformer_is_refused(data, tmp_path, change, expected):
    recipe = ["--config", "emoji_flow_teacher:tiny", *data]
    with pytest.raises(SystemExit) as stop:
        command.main([*recipe, change, "--workdir", str(tmp_path / "run")])
    line = stop.value.code
    assert line.startswith("error: ") and "\n" not in line and not (tmp_path / "run").exists()
    assert all(text in line for text in expected), line


def test_what_a_file_alone_can_say_of_a_transformer_is_refused():
    """Heads that are no number; and as many layers as a published model of another width."""
    recipe = read_recipe("emoji_flow_teacher:tiny")
    recipe.transformer = {**recipe.transformer, "num_attention_heads": None}
    with pytest.raises(InputError, match="^config.transformer: num_attention_heads = None, supp"):
        UNTRAINED["sd3"].of(freeze(recipe, Pretraining))
    recipe.transformer = {**recipe.transformer, "num_attention_heads": 2, "num_layers": 38}
    network = UNTRAINED["sd3"].of(freeze(recipe, Pretraining)).denoiser
    assert read_network(network.to_dict()) == network


def test_the_recipe_of_the_emoji_is_one():
    config = freeze(read_recipe("emoji_teacher"), Pretraining)
    assert config.dtype == "float16" and default_pretraining().dtype == "float32"


def test_a_transformer_begins_with_blocks_that_change_nothing_and_an_answer_of_zero():
    untrained = UNTRAINED["sd3"].of(freeze(read_recipe("emoji_flow_teacher:tiny"), Pretraining))
    network, weights = untrained.fresh(jax.random.key(0))["transformer"]
    shapes = (1, 8, 8, 4), (1,), (1, 5, network.joint_attention_dim), (1, 32)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape, np.float32) for shape in shapes]
    apply = functional.apply_fn(SD3Transformer2DModel, network)
    assert not np.any(apply(weights, *inputs))
    # Of its text tokens it makes nothing yet, whatever the answer is made of.
    weights["proj_out"]["kernel"] = rng.standard_normal(weights["proj_out"]["kernel"].shape)
    before = apply(weights, *inputs)
    inputs[2] = inputs[2] + 1
    assert np.any(before) and np.array_equal(apply(weights, *inputs), before)
