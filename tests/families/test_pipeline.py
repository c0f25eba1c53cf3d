"""Teacher and student networks at step 0, and model folders: whole, damaged, foreign."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, normal

from slam_jax.base.errors import InputError
from slam_jax.data import digits
from slam_jax.families.digits import digits_pipeline
from slam_jax.families.family import (
    student_config,
    student_network,
    student_params,
    teacher_network,
)
from slam_jax.formats.flax_folder import SavedModel, load_model, save_model
from slam_jax.models import functional
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig

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
    params = functional.init(UNet2DConditionModel, UNET, jax.random.key(0))
    pipeline = digits_pipeline(UNET, "epsilon")
    return SavedModel(UNET, jax.device_get(params), pipeline.scheduler, {"seed": 0})


@pytest.mark.parametrize("conditioning", ["embedding", "snr", "both"])
def test_the_student_starts_as_the_teacher_for_every_gamma(teacher, conditioning):
    pipeline = digits_pipeline(UNET, "epsilon")
    config = student_config(UNET, conditioning)
    assert (config.time_cond_proj_dim is None) == (conditioning == "snr")
    assert UNET.time_cond_proj_dim is None  # the teacher's config is left alone
    params = student_params(teacher.params, config)
    x, t = jnp.asarray(normal(0, 4, *digits.LATENT_SHAPE), jnp.float32), jnp.arange(4) * 300
    batch = {"tokens": jnp.asarray(digits.tokenize(np.arange(4)))}
    context, null = pipeline.contexts({}, batch, w=1.0)
    assert np.any(context["encoder_hidden_states"] != null["encoder_hidden_states"])
    gamma = jnp.array([0.0, 0.3, 0.7, 1.0])
    ours = jit(lambda p: student_network(config)(p)(x, t, context, gamma))(params)
    theirs = jit(lambda p: teacher_network(UNET)(p)(x, t, context))(teacher.params)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())
    if conditioning == "snr":
        assert functional.first_difference(teacher.params, params) is None
        return
    projection = params["time_embedding"]["cond_proj"]["kernel"]
    params["time_embedding"]["cond_proj"]["kernel"] = projection + 0.1
    moved = jit(lambda p: student_network(config)(p)(x, t, context, gamma))(params)
    assert np.abs(moved - theirs).max() > 1e-3  # gamma does reach the network


@pytest.mark.parametrize(
    ("option", "value"), [("in_channels", 3), ("out_channels", 8), ("cross_attention_dim", 768)]
)
def test_a_unet_that_does_not_fit_the_digits_is_refused(option, value):
    with pytest.raises(ValueError, match=f"unet.{option} = {value}, the digits need"):
        digits_pipeline(dataclasses.replace(UNET, **{option: value}), "epsilon")


def test_model_folder_round_trip(teacher, tmp_path):
    save_model(tmp_path, teacher)
    loaded = load_model(tmp_path)
    assert (loaded.unet, loaded.scheduler, loaded.info) == (UNET, teacher.scheduler, {"seed": 0})
    jax.tree.map(np.testing.assert_array_equal, loaded.params, teacher.params)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "flax_params.safetensors"}


def truncate(folder):
    path = folder / "flax_params.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def other_weights(folder):
    content = json.loads((folder / "config.json").read_text())
    content["unet"]["block_out_channels"] = [4]
    (folder / "config.json").write_text(json.dumps(content))


def foreign_unet(folder):
    content = json.loads((folder / "config.json").read_text())
    content["unet"]["class_embed_type"] = "timestep"
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "export the model again"),
        (lambda folder: (folder / "config.json").write_text("{}"), "'unet' is missing"),
        (lambda folder: (folder / "flax_params.safetensors").unlink(), "flax_params.safetensors"),
        (truncate, "flax_params.safetensors"),
        (other_weights, r"has shape \(8,\), expected \(4,\)"),
        (foreign_unet, "class_embed_type"),
    ],
)
def test_a_damaged_model_folder_is_named_in_one_line(teacher, tmp_path, damage, message):
    save_model(tmp_path, teacher)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
