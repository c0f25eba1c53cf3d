"""LoRAs for few steps without a record, as others publish them: how the model draws is given."""

import jax
import numpy as np
import pytest
import tiny_loras
import tiny_students
from diffusers import LCMScheduler
from small_digits import PIPELINE, UNET

import slam_jax
from slam_jax.base.errors import InputError
from slam_jax.families.family import LoadOptions
from slam_jax.formats.flax_folder import SavedModel, save_model
from slam_jax.formats.lora_file import write_lora
from slam_jax.method.lcm import Lcm
from slam_jax.method.slam import Slam
from slam_jax.recipes.student import load
from slam_jax.serving import stock_pipeline


@pytest.fixture(scope="module")
def lcm_lora(teachers, tmp_path_factory):
    """A file as latent-consistency/lcm-lora-sdv1-5 is: kohya's keys, and nothing beside it."""
    path = tmp_path_factory.mktemp("loras") / "lcm.safetensors"
    write_lora(path, tiny_loras.make(teachers["sd15"])[0].lora)
    return path


@pytest.mark.slow
def test_the_stock_pipeline_draws_our_pictures(teachers, lcm_lora):
    """As the card of LCM-LoRA says: LCMScheduler of the model's own configuration, guidance 1."""

    def prepare(pipeline):
        pipeline.load_lora_weights(lcm_lora.parent, weight_name=lcm_lora.name)
        pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)

    ours = load(str(teachers["sd15"]), LoadOptions(loras=(str(lcm_lora),), method="lcm"))
    images = stock_pipeline.compare(
        ours, teachers["sd15"], stock_pipeline.PROMPTS, (1, 2, 4), prepare=prepare
    )
    for mine, stock in images.values():
        assert np.abs(mine - stock).max() * 127.5 <= 0.05  # promised are 2
        assert np.all(mine.std(axis=(1, 2, 3)) > 0.05)


def test_without_a_method_it_is_a_style(teachers, lcm_lora):
    assert not slam_jax.load(teachers["sd15"], loras=[str(lcm_lora)]).is_student
    for name, method in (("lcm", Lcm()), ("slam", Slam(conditioning="snr"))):
        model = slam_jax.load(teachers["sd15"], loras=[str(lcm_lora)], method=name)
        assert model.method == method and not method.tells_gamma


@pytest.fixture(scope="module")
def folders(teachers, tmp_path_factory):
    """A teacher, a student, and a model of the digits."""
    folder = tmp_path_factory.mktemp("models")
    tiny_students.export(tiny_students.make(teachers["sd15"], "snr"), folder / "student")
    student, family = tiny_loras.make(teachers["sd15"])
    family.export(student, folder / "lora")
    params = jax.device_get(PIPELINE.init(UNET, jax.random.key(0)))
    digits = SavedModel("digits", UNET.to_dict(), params, PIPELINE.scheduler, {})
    save_model(folder / "digits", digits)
    return folder, {"teacher": teachers["sd15"]}


@pytest.mark.parametrize(
    ("model", "lora", "method", "expected"),
    [
        ("teacher", None, "lcm", "is for a model with a LoRA; there is none$"),
        ("teacher", "file", "ddim", "expected one of slam, lcm, pcm$"),
        ("teacher", "file", "slam_literal", "expected one of slam, lcm, pcm$"),
        ("student", "file", "lcm", "the model is a student already; leave it out$"),
        ("teacher", "lora", "lcm", ".*safetensors has a record of its method; leave it out$"),
        ("lora", None, "lcm", ".*safetensors has a record of its method; leave it out$"),
        ("digits", None, "lcm", ".*is of a family without LoRA files$"),
    ],
)
def test_what_has_no_use_for_a_method(folders, lcm_lora, model, lora, method, expected):
    folder, others = folders
    names = {None: [], "file": [str(lcm_lora)], "lora": [str(folder / "lora")]}
    prefix = "--method: " if model == "digits" else f"--method {method}: "
    with pytest.raises(InputError, match=f"^{prefix}{expected}"):
        slam_jax.load(others.get(model, folder / model), loras=names[lora], method=method)
