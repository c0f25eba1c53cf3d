"""The digits: teacher and student networks at step 0, what is refused, and model folders: whole,
damaged, foreign."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, normal

from slam_jax.base.errors import InputError
from slam_jax.base.options import OptionError
from slam_jax.config.options import Teacher
from slam_jax.data import digits
from slam_jax.data.options import Data
from slam_jax.families.digits import Digits, digits_pipeline
from slam_jax.families.family import LoadOptions
from slam_jax.families.pipeline import (
    student_config,
    student_network,
    student_params,
    teacher_network,
)
from slam_jax.formats.flax_folder import SavedModel, load_model, save_model
from slam_jax.method.slam import Slam
from slam_jax.models import functional
from slam_jax.models.unet import UNetConfig

UNET = UNetConfig(
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    block_out_channels=(8,),
    layers_per_block=1,
    cross_attention_dim=12,
    attention_head_dim=2,
    norm_num_groups=2,
)


@pytest.fixture(scope="module")
def teacher():
    pipeline = digits_pipeline(UNET, "epsilon")
    params = jax.device_get(pipeline.init(UNET, jax.random.key(0)))
    return SavedModel("digits", UNET.to_dict(), params, pipeline.scheduler, {"seed": 0})


@pytest.mark.parametrize("conditioning", ["embedding", "snr", "both"])
def test_the_student_starts_as_the_teacher_for_every_gamma(teacher, conditioning):
    pipeline, method = digits_pipeline(UNET, "epsilon"), Slam(conditioning=conditioning)
    config = student_config(pipeline, method)
    assert (config.time_cond_proj_dim is None) == (conditioning == "snr")
    assert UNET.time_cond_proj_dim is None  # the teacher's config is left alone
    params = student_params(pipeline, method, teacher.params)
    assert functional.first_difference(pipeline.abstract_params(config), params) is None
    assert "cond_proj" not in teacher.params["time_embedding"]
    x, t = jnp.asarray(normal(0, 4, *digits.LATENT_SHAPE), jnp.float32), jnp.arange(4) * 300
    batch = {"tokens": jnp.asarray(digits.tokenize(np.arange(4)))}
    context, null = pipeline.contexts({}, batch, w=1.0)
    assert np.any(context["encoder_hidden_states"] != null["encoder_hidden_states"])
    gamma = jnp.array([0.0, 0.3, 0.7, 1.0])
    ours = jit(lambda p: student_network(pipeline, config)(p)(x, t, context, gamma))(params)
    theirs = jit(lambda p: teacher_network(pipeline)(p)(x, t, context))(teacher.params)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())
    if conditioning == "snr":
        assert functional.first_difference(teacher.params, params) is None
        return
    projection = params["time_embedding"]["cond_proj"]["kernel"]
    params["time_embedding"]["cond_proj"]["kernel"] = projection + 0.1
    moved = jit(lambda p: student_network(pipeline, config)(p)(x, t, context, gamma))(params)
    assert np.abs(moved - theirs).max() > 1e-3  # gamma does reach the network


@pytest.mark.parametrize(
    ("option", "value"), [("in_channels", 3), ("out_channels", 8), ("cross_attention_dim", 768)]
)
def test_a_unet_that_does_not_fit_the_digits_is_refused(option, value):
    with pytest.raises(OptionError, match=f"^network.{option} = {value}, expected .* for the digi"):
        digits_pipeline(dataclasses.replace(UNET, **{option: value}), "epsilon")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(network={}), "config.teacher.network.cross_attention_dim = 1280, expected 12"),
        (dict(network={"colour": "blue"}), "unknown key colour = 'blue'"),
        (
            dict(network=UNET.to_dict() | {"norm_num_groups": 3}),
            "expected a UNet that can be built",
        ),
        (
            dict(network=UNET.to_dict() | {"time_cond_proj_dim": 256}),
            "config.teacher.network.time_cond_proj_dim = 256, expected None",
        ),
        (dict(revision="main"), "config.teacher.revision = 'main', expected nothing"),
        (dict(variant="fp16"), "config.teacher.variant = 'fp16', expected nothing"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(tmp_path, changes, message):
    options = {"family": "digits", "network": UNET.to_dict(), **changes}
    with pytest.raises(InputError) as caught:
        Digits.open(Teacher(**options), tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(source="photographs"), "config.data: source = 'photographs', expected 'digits'"),
        (Data(source="digits", flip=True), "config.data: digits: flip = True means nothing to it"),
    ],
)
def test_data_that_are_not_digits_are_refused(tmp_path, data, message):
    family = Digits.open(Teacher(family="digits", network=UNET.to_dict()), tmp_path)
    with pytest.raises(InputError, match=message):
        family.source(data)
    assert len(family.source(Data(source="digits"))) == 1797


def test_shapes_of_a_batch_are_those_of_one(tmp_path):
    family = Digits.open(Teacher(family="digits", network=UNET.to_dict()), tmp_path)
    batch, _ = family.source(Data(source="digits")).read(np.arange(5), np.arange(5))
    shapes = family.batch_shapes(None, 5)
    assert {name: (s.shape, s.dtype) for name, s in shapes.items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }


def test_other_prompts_than_digits_are_refused():
    pipeline = digits_pipeline(UNET, "epsilon")
    assert pipeline.prompts(["3", "0"])["tokens"].shape == (2, 2)
    for text in ("10", "", "a cat"):
        with pytest.raises(InputError, match=f"prompt '{text}': this model draws the digits"):
            pipeline.prompts(["3", text])


def test_model_folder_round_trip(teacher, tmp_path):
    save_model(tmp_path, teacher)
    loaded = load_model(tmp_path)
    assert (loaded.family, loaded.scheduler) == ("digits", teacher.scheduler)
    assert UNetConfig.from_dict(loaded.network) == UNET
    assert loaded.info == {"seed": 0}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, teacher.params)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "flax_params.safetensors"}


def truncate(folder):
    path = folder / "flax_params.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def changed(part, **values):
    """A damage: other values in a part of config.json."""

    def change(folder):
        content = json.loads((folder / "config.json").read_text())
        content[part] |= values
        (folder / "config.json").write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "export the model again"),
        (
            lambda folder: (folder / "config.json").write_text("{}"),
            "family is None, expected a str",
        ),
        (lambda folder: (folder / "flax_params.safetensors").unlink(), "flax_params.safetensors"),
        (truncate, "flax_params.safetensors"),
        (changed("network", block_out_channels=[4]), r"has shape \(8,\), expected \(4,\)"),
        (changed("network", class_embed_type="timestep"), "class_embed_type"),
        (changed("network", in_channels=3), "config.json: network.in_channels = 3, expected 4"),
        (changed("scheduler", prediction_type="velocity"), "prediction_type: 'velocity'"),
        (
            changed("info", method={"name": "dmd"}),
            r"method\.name = 'dmd', expected one of slam, slam_literal, lcm, pcm; export",
        ),
        (
            changed("info", method={"name": "slam", "w": -1}),
            r"method\.w = -1\.0, expected a number at least 0 and at most 1000; export",
        ),
    ],
)
def test_a_damaged_model_folder_is_named_in_one_line(teacher, tmp_path, damage, message):
    save_model(tmp_path, teacher)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        Digits.load(str(tmp_path), LoadOptions())
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_loaded_model_is_what_was_saved(teacher, tmp_path):
    save_model(tmp_path, teacher)
    assert Digits.reads(tmp_path) and not Digits.reads(tmp_path / "nowhere")
    model = Digits.load(str(tmp_path), LoadOptions())
    assert not model.is_student and model.pipeline.network == UNET
    assert model.pipeline.scheduler == teacher.scheduler
    method = Slam(w=3.0, conditioning="snr")
    info = {"method": dataclasses.asdict(method)}
    save_model(tmp_path, dataclasses.replace(teacher, info=info))
    student = Digits.load(str(tmp_path), LoadOptions())
    assert student.is_student and student.method == method and student.info == info
    for option in (dict(revision="main"), dict(variant="fp16"), dict(height=8), dict(width=8)):
        with pytest.raises(InputError, match=f"a model of this family has no {next(iter(option))}"):
            Digits.load(str(tmp_path), LoadOptions(**option))
