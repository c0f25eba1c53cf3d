"""Exported students of Stable Diffusion 3: the stock pipeline draws our pictures with them, whole
or as LoRAs, if it is given the sigmas of the model card."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
import tiny_loras
import tiny_students
import torch
from helpers import refusal
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file
from stock_pipeline import load_stock

from slam_jax.base.options import OptionError
from slam_jax.config.command_line import read_recipe
from slam_jax.config.options import Config, StudentOptions, Teacher
from slam_jax.config.validate import freeze
from slam_jax.families.family import LoadOptions
from slam_jax.families.sd3 import StableDiffusion3
from slam_jax.formats import convert
from slam_jax.formats import safetensors as weights
from slam_jax.formats.lora_file import FILE
from slam_jax.formats.lora_header import read_header
from slam_jax.method.pcm import Pcm
from slam_jax.method.slam import Slam
from slam_jax.models import lora
from slam_jax.recipes.student import as_model, load
from slam_jax.serving import stock_pipeline

SLAM = Slam(sigma="linear", conditioning="snr", w=3.0)
LORA = Config(
    method=SLAM,
    student=StudentOptions("lora", rank=4, alpha=6.0, targets=("to_q", "add_k_proj", "ff.net.2")),
)


def assert_drawn_alike(images):
    for ours, stock in images.values():
        assert ours.shape == stock.shape == (2, 64, 64, 3)
        assert np.abs(ours - stock).max() * 127.5 <= 0.02  # promised are 2
        assert np.all(ours.std(axis=(1, 2, 3)) > 0.05) and np.abs(ours[0] - ours[1]).max() > 0.2


@pytest.mark.parametrize(
    ("family", "method", "steps"),
    [
        ("sd35", SLAM, (2,)),
        pytest.param("sd35", SLAM, (1, 4), marks=pytest.mark.slow),
        pytest.param("sd3", SLAM, (2,), marks=pytest.mark.slow),
        pytest.param("sd3", Pcm(phases=4), (4,), marks=pytest.mark.slow),
    ],
)
def test_the_stock_pipeline_draws_our_pictures(teachers, tmp_path, family, method, steps):
    made = tiny_students.make(teachers[family], method=method, kind=StableDiffusion3)
    tiny_students.export(made, tmp_path / "out")
    model = as_model(made[0], Config(method=method), made[1])
    images = stock_pipeline.compare(model, tmp_path / "out", stock_pipeline.PROMPTS, steps)
    assert_drawn_alike(images)


@pytest.mark.parametrize(("method", "kind"), [(SLAM, "LCM"), (Pcm(), "EulerDiscrete")])
def test_what_is_in_the_folder(teachers, tmp_path, method, kind):
    made, out = tiny_students.make(teachers["sd3"], method=method, kind=StableDiffusion3), tmp_path
    tiny_students.export(made, out / "out")
    out = out / "out"
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert index["scheduler"] == ["diffusers", f"FlowMatch{kind}Scheduler"]
    assert index["text_encoder_3"] == index["tokenizer_3"] == [None, None]
    scheduler = json.loads((out / "scheduler/scheduler_config.json").read_text())
    assert scheduler == {
        "_class_name": f"FlowMatch{kind}Scheduler",
        "num_train_timesteps": 1000,
        "shift": 3.0,
    }
    record, card = json.loads((out / "slam.json").read_text()), (out / "README.md").read_text()
    assert record["family"] == "sd3" and record["sigmas"]["4"] == [1.0, 0.76, 0.5, 0.26]
    told = "num_inference_steps=4, sigmas=[1.0, 0.76, 0.5, 0.26], guidance_scale=1"
    assert told in card and told in record["usage"] and "| 2 | 1, 0.5 |" in card
    assert "text_encoder_3=None, tokenizer_3=None" in card and "the transformer and" in card
    student = load(str(out))
    assert student.method == method and student.info == record
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(student.params), made[0].params)
    stock = load_stock(out).transformer.state_dict()
    for key, array in convert.to_torch(made[0].params).items():
        np.testing.assert_array_equal(stock[key].numpy(), array, err_msg=key)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_frozen_parts_are_as_large_as_the_teachers_and_computed_in_float32(
    teachers, tmp_path, dtype
):
    """T5 of Stable Diffusion 3 would be 19 GB in float32; the stock pipeline makes it that."""
    folder, expected = shutil.copytree(teachers["sd35"], tmp_path / "teacher"), {}
    parts = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    for part in parts:
        (file,) = (folder / part).glob("*.safetensors")
        expected[part] = {
            key: array.astype(dtype) if array.dtype == np.float32 else array
            for key, array in weights.load_arrays(file).items()
        }
        weights.save_arrays(file, expected[part])
        config = folder / part / "config.json"
        if part != "vae":  # transformers says it
            config.write_text(json.dumps(json.loads(config.read_text()) | {"torch_dtype": dtype}))
    made = tiny_students.make(folder, method=SLAM, kind=StableDiffusion3)
    tiny_students.export(made, tmp_path / "out")
    stock = load_stock(tmp_path / "out")
    for part in parts:
        (file,), network = (tmp_path / "out" / part).glob("*.safetensors"), getattr(stock, part)
        found = weights.load_arrays(file)
        assert network.dtype == torch.float32
        for key, array in expected[part].items():
            assert found[key].dtype == array.dtype
            np.testing.assert_array_equal(found[key], array)
    shared = stock.text_encoder_3.state_dict()["shared.weight"].numpy()
    wanted = expected["text_encoder_3"]["shared.weight"].astype(np.float32)
    np.testing.assert_array_equal(shared, wanted)


def test_the_sigmas_are_our_times(teachers):
    """Through the scheduler's own shift."""
    import diffusers

    schedule = StableDiffusion3.open(Teacher(path=str(teachers["sd35"])), "").pipeline.schedule
    for method in (SLAM, Slam(sigma="linear", conditioning="snr", num_ddim_timesteps=30), Pcm()):
        own = method.diffusers_scheduler(schedule)
        scheduler = getattr(diffusers, own["_class_name"]).from_config(own)
        for steps in (1, 3, 4, 8):
            times = method.timesteps(steps, schedule)
            scheduler.set_timesteps(sigmas=schedule.sigmas_for(times))
            np.testing.assert_allclose(scheduler.timesteps.numpy(), times, atol=3e-3)


@pytest.fixture(scope="module")
def alone(teachers, tmp_path_factory):
    """(student, teacher, export of the LoRA alone)."""
    student, family = tiny_loras.make(teachers["sd35"], kind=StableDiffusion3, config=LORA)
    out = tmp_path_factory.mktemp("lora") / "out"
    family.export(student, out)
    return student, family, out


def test_a_lora_has_the_keys_of_diffusers(alone):
    _, family, out = alone
    arrays = load_file(out / FILE)
    pattern = r"transformer\.transformer_blocks\.\d+\.[a-z0-9_.]+\.lora_[AB]\.weight"
    assert all(re.fullmatch(pattern, key) for key in arrays)
    stock = load_stock(family.folder.path)
    with tiny_loras.any_peft():
        stock.load_lora_weights(out, adapter_name="steps")
    found = get_peft_model_state_dict(stock.transformer, adapter_name="steps")
    assert {f"transformer.{key}" for key in found} == arrays.keys()
    about = stock.transformer.peft_config["steps"]
    assert about.r == about.lora_alpha == 4
    card = (out / "README.md").read_text()
    assert "ComfyUI" not in card and "load_lora_weights" in card and "sigmas=[1.0, 0.76" in card


def test_a_lora_is_read_again(alone, teachers):
    student, family, out = alone
    expected = lora.merged(family.denoiser(), student.lora)
    for model in (load(str(out)), load(str(teachers["sd35"]), LoadOptions(loras=(str(out),)))):
        assert model.method == SLAM
        actual = jax.device_get(model.params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-3), actual, expected
        )
    moved = np.abs(
        actual["transformer_blocks"]["0"]["attn"]["to_q"]["kernel"]
        - family.denoiser()["transformer_blocks"]["0"]["attn"]["to_q"]["kernel"]
    )
    assert moved.max() > 0.05


def test_alpha_in_the_header_is_read(alone):
    path = alone[2] / FILE
    assert read_header(path).alpha("denoiser", "transformer_blocks.0.attn.to_q", 3) == (4, True)


@pytest.mark.slow
def test_the_stock_pipeline_draws_with_the_lora(alone, capsys):
    """As `slam-jax export --verify` has it, in 1, 2, 4 and 8 steps."""
    student, family, out = alone
    with tiny_loras.any_peft():
        stock_pipeline.verify(as_model(student, LORA, family), out)
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 4 and all(float(line.split()[1]) <= 0.1 for line in lines)


def test_the_recipe(teachers):
    full, tiny = read_recipe("sd35"), freeze(read_recipe("sd35:tiny"))
    assert full.teacher.family == "sd3" and full.data.resolution == 1024
    assert {full.precision[name] for name in ("teacher", "target", "student")} == {"bfloat16"}
    pipeline = StableDiffusion3.open(Teacher(path=str(teachers["sd35"])), "", 64).pipeline
    tiny.method.check(pipeline.schedule)
    shapes = pipeline.abstract_params(pipeline.network)
    layers = {path for path, _ in lora.layers_of(shapes, tiny.student.targets)}
    lora.abstract_adapters(shapes, tiny.student.rank, tiny.student.targets)
    # The joint attention of both blocks, in the last without answers to the text; the second one
    # of the first block; feed-forwards.
    assert len(layers) == 8 + 7 + 4 + (4 + 2)
    for method in (Slam(), Slam(sigma="linear", conditioning="both")):
        with pytest.raises(OptionError, match="for a flow-matching teacher"):
            method.check(pipeline.schedule)
    assert dataclasses.asdict(tiny.method)["gamma"] == "paired"
    assert "no input" in refusal(pipeline.gamma_network)
