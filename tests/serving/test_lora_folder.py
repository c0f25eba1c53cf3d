"""The export of a LoRA alone: what is in it, and how it finds the model that it is for."""

import argparse
import fnmatch
import json
import shutil
import tracemalloc
from functools import partial

import jax
import numpy as np
import pytest
import tiny_loras
from diffusers import LCMScheduler
from safetensors.numpy import load_file

import slam_jax
from slam_jax.base.errors import InputError
from slam_jax.config.options import Teacher
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.formats import hub
from slam_jax.formats.lora_file import FILE
from slam_jax.models.functional import flatten
from slam_jax.recipes.measure import read_teacher
from slam_jax.recipes.student import saved_student, whole
from slam_jax.serving import stock_pipeline


@pytest.fixture(scope="module")
def made(teachers):
    return tiny_loras.make(teachers["sd15"])


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """Not to be changed."""
    out = tmp_path_factory.mktemp("lora") / "student"
    made[1].export(made[0], out)
    return out


def test_it_holds_the_lora_and_what_says_how_to_draw_with_it(exported, teachers):
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files == {FILE, "scheduler/scheduler_config.json", "slam.json", "README.md"}
    teacher, card = teachers["sd15"], (exported / "README.md").read_text()
    assert f'StableDiffusionPipeline.from_pretrained("{teacher}")' in card
    for part in ("load_lora_weights", "LCMScheduler.from_pretrained", "guidance_scale=1", "w = 2"):
        assert part in card
    assert "of rank 4" in card and "64x64 pixels" in card
    assert "sampler `lcm` and CFG 1" in card and "{" not in card
    scheduler = json.loads((exported / "scheduler/scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "LCMScheduler"
    record = json.loads((exported / "slam.json").read_text())
    assert record["teacher"]["path"] == str(teacher) and record["image_size"] == [64, 64]
    assert "load_lora_weights(folder)" in record["usage"]


def test_it_is_its_teacher_with_the_lora(made, exported):
    """W + up down, by the arrays of the file."""
    model = slam_jax.load(exported)
    assert model.method == tiny_loras.CONFIG.method
    assert model.info == json.loads((exported / "slam.json").read_text())
    layer, arrays = "mid_block.attentions.0.proj_in", load_file(exported / FILE)
    key = f"lora_unet_{layer.replace('.', '_')}"
    up, down = (arrays[f"{key}.lora_{side}.weight"].astype(np.float32) for side in ("up", "down"))
    change = (up[:, :, 0, 0] @ down[:, :, 0, 0]).T
    kernel = f"{layer}.kernel"
    before = flatten(made[1].denoiser())[kernel]
    assert np.abs(change).max() > 0.01
    np.testing.assert_allclose(
        flatten(model.params)[kernel][0, 0], before[0, 0] + change, atol=1e-6
    )


@pytest.fixture
def moved(exported, changeable, tmp_path):
    """The export, of a teacher that a test may change."""
    out = shutil.copytree(exported, tmp_path / "lora")
    change_record(out, lambda record: record["teacher"].update(path=str(changeable)))
    return out


def change_record(out, change):
    record = json.loads((out / "slam.json").read_text())
    change(record)
    (out / "slam.json").write_text(json.dumps(record))


def test_it_draws_at_the_size_that_it_was_trained_at(moved):
    change_record(moved, lambda record: record.update(image_size=[48, 48]))
    assert slam_jax.load(moved).pipeline.image_size == (48, 48)
    assert slam_jax.load(moved, height=32).pipeline.image_size == (32, 48)


def test_a_teacher_that_is_gone_or_another_one(moved, changeable):
    advice = f"; say where it is with --model BASE --lora {moved}$"
    config = changeable / "unet/config.json"
    config.write_text(config.read_text().replace("\n", " ", 1))
    with pytest.raises(InputError, match=f"^{moved}: a LoRA for '{changeable}', whose unet is"):
        slam_jax.load(moved)
    shutil.move(changeable, changeable.with_name("elsewhere"))
    with pytest.raises(InputError, match=f"^{moved}: a LoRA for '{changeable}': .*no such folder"):
        slam_jax.load(moved)
    with pytest.raises(InputError, match=advice) as error:
        slam_jax.load(moved)
    assert "\n" not in str(error.value)
    elsewhere = slam_jax.load(changeable.with_name("elsewhere"), loras=[str(moved)])
    assert elsewhere.is_student
    for damaged in ("a name", {"path": None}):
        change_record(moved, lambda record, value=damaged: record.update(teacher=value))
        with pytest.raises(InputError, match=f"^{moved}/slam.json: it names no teacher{advice}"):
            slam_jax.load(moved)
    change_record(moved, lambda record: record.update(teacher={"path": "x"}, image_size=[512]))
    with pytest.raises(InputError, match=f"^{moved}/slam.json: no image_size; export the LoRA"):
        slam_jax.load(moved)
    change_record(moved, lambda record: record.pop("teacher"))
    with pytest.raises(InputError, match=advice):
        slam_jax.load(moved)


def test_a_teacher_as_it_is_on_the_hub(made, changeable, tmp_path):
    """A variant of the weights, and a safety checker that is named and was not fetched."""
    for path in changeable.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    index = json.loads((changeable / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (changeable / "model_index.json").write_text(json.dumps(index))
    out, teacher = tmp_path / "out", Teacher(path=str(changeable), variant="fp16")
    StableDiffusion.open(teacher, changeable).export(made[0], out)
    assert slam_jax.load(out).is_student
    for path in changeable.rglob("*.fp16.safetensors"):
        path.rename(path.with_name(path.name.replace(".fp16.", ".other.")))
    with pytest.raises(InputError, match="fp16"):
        slam_jax.load(out)
    assert slam_jax.load(out, variant="other").is_student
    for path in changeable.rglob("*.other.safetensors"):
        path.rename(path.with_name(path.name.replace(".other.", ".fp16.")))
    found = []
    prepare = partial(stock_pipeline.add_lora, folder=out)
    stock_pipeline.stock_sampler(changeable, lambda p: found.append(prepare(p) or p), "fp16")
    assert type(found[0].scheduler) is LCMScheduler and found[0].unet.peft_config


def test_its_pictures_can_be_measured_against_its_teachers(exported):
    given = dict(model=str(exported), teacher="", lora=[], dtype="float32", teacher_guidance=None)
    teacher, guidance = read_teacher(argparse.Namespace(**given), slam_jax.load(exported))
    assert not teacher.is_student and guidance == 3


def test_a_lora_on_the_hub(exported, tmp_path, monkeypatch):
    """Its file is fetched at the commit that the rest is of."""
    snapshot, asked = tmp_path / ("c" * 40), []

    def fetch(name, revision, patterns):
        asked.append((name, revision))
        for path in exported.rglob("*"):
            inside = str(path.relative_to(exported))
            if path.is_file() and any(fnmatch.fnmatch(inside, p) for p in patterns):
                (snapshot / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, snapshot / inside)
        return snapshot

    monkeypatch.setattr(hub, "fetch", fetch)
    fetched, here = (slam_jax.load(name) for name in ("me/lora", exported))
    assert asked == [("me/lora", ""), *2 * [("me/lora", "c" * 40)]]
    assert not (snapshot / "README.md").exists()
    jax.tree.map(np.testing.assert_array_equal, fetched.params, here.params)


def test_only_the_unet_is_read_and_only_where_it_is_merged(made, monkeypatch):
    student, family = made

    def fail(*_):
        pytest.fail("weights are read")

    monkeypatch.setattr(family, "weights", fail)
    assert whole(student, family).params.keys() == family.denoiser().keys()
    monkeypatch.setattr(family, "denoiser", fail)
    assert saved_student(family, tiny_loras.CONFIG, student.lora, {}).params == {}


def test_merging_never_holds_two_unets(made):
    student, family = made

    def peak(work):
        tracemalloc.start()
        result = work()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(result))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most, size

    (reading, size), (merging, _) = (
        peak(work) for work in (family.denoiser, lambda: whole(student, family).params)
    )
    assert merging < reading + 0.3 * size
