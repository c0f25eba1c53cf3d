"""An exported LoRA: its keys, and that the stock pipeline draws our pictures with it."""

import argparse
import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import tiny_loras
import tiny_runs
import tiny_students
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from interrupted_runs import make_run
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.numpy import load_file

from slam_jax.base.errors import InputError
from slam_jax.commands import export
from slam_jax.families.family import LoadOptions
from slam_jax.formats.lora_file import FILE
from slam_jax.models import lora
from slam_jax.models.functional import flatten
from slam_jax.recipes.measure import read_teacher
from slam_jax.recipes.student import as_model, load, whole, with_lora
from slam_jax.serving import stock_pipeline


@pytest.fixture(scope="module")
def made(teachers):
    return tiny_loras.make(teachers["sd15"])


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("lora") / "student"
    made[1].export(made[0], out)
    return out


def test_the_file_has_kohyas_keys_and_an_alpha_for_each_layer(exported):
    arrays = load_file(exported / FILE)
    assert all(array.dtype == np.float16 for array in arrays.values())
    layers = {key.split(".")[0] for key in arrays}
    assert len(arrays) == 3 * len(layers)
    for layer in layers:
        assert re.fullmatch(r"lora_unet_[a-z0-9_]+", layer)
        down, up = (arrays[f"{layer}.{side}.weight"] for side in (lora.DOWN, lora.UP))
        assert down.shape[0] == up.shape[1] == arrays[f"{layer}.alpha"] == 4
        assert up.shape[2:] in ((), (1, 1)) and down.ndim == up.ndim
    # As latent-consistency/lcm-lora-sdv1-5 has them.
    expected = (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_down_blocks_0_resnets_0_time_emb_proj",
        "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_mid_block_resnets_0_conv1",
    )
    assert layers.issuperset(expected)


def test_diffusers_finds_the_same_lora_in_both_layouts(made, exported, teachers, tmp_path):
    """What it writes itself of the one has the names and the header of the other."""
    out = tmp_path / "out"
    made[1].export(dataclasses.replace(made[0], lora_keys="diffusers"), out)
    weights = {}
    for folder in (exported, out):
        pipeline = StableDiffusionPipeline.from_pretrained(teachers["sd15"])
        pipeline.load_lora_weights(folder, adapter_name="steps")
        assert pipeline.unet.peft_config["steps"].r == 4
        state = get_peft_model_state_dict(pipeline.unet, adapter_name="steps")
        about = pipeline.unet.peft_config["steps"].to_dict()
        pipeline.save_lora_weights(
            tmp_path / "again", unet_lora_layers=state, unet_lora_adapter_metadata=about
        )
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        weights[folder] = pipeline.unet.state_dict()
    for key, tensor in weights[exported].items():
        torch.testing.assert_close(tensor, weights[out][key], rtol=0, atol=0)
    ours, theirs = (safe_open(folder / FILE, "np") for folder in (out, tmp_path / "again"))
    assert set(ours.keys()) == set(theirs.keys())
    ours, theirs = (json.loads(file.metadata()["lora_adapter_metadata"]) for file in (ours, theirs))
    layers = ours.pop("unet.target_modules")  # peft shortens them to their ends
    assert {f"unet.{layer}.lora_A.weight" for layer in layers} < set(load_file(out / FILE))
    assert ours == {name: theirs[name] for name in ours} and ours["unet.lora_alpha"] == 4
    jax.tree.map(np.testing.assert_array_equal, load(str(out)).params, load(str(exported)).params)
    card = (out / "README.md").read_text()
    assert "ComfyUI wants the keys of kohya" in card and "strength 1" not in card


def test_a_merged_export_is_a_whole_student_too(made, tmp_path):
    made[1].export(whole(*made), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {FILE, "model_index.json", "unet", "vae", "flax"}
    card = (tmp_path / "out/README.md").read_text()
    assert "# A student of" in card and "## As a LoRA" in card and "load_lora_weights" in card
    loaded = load(str(tmp_path / "out"))
    assert loaded.is_student and loaded.method == tiny_loras.CONFIG.method
    teacher = flatten(made[1].denoiser())
    layer = "mid_block.resnets.0.conv1"
    down, up = (
        flatten(made[0].lora)[f"{layer}.{side}.kernel"].astype(np.float64)
        for side in (lora.DOWN, lora.UP)
    )
    kernel = f"{layer}.kernel"
    expected = teacher[kernel] + np.einsum("hwir,ro->hwio", down, up[0, 0])
    np.testing.assert_allclose(flatten(loaded.params)[kernel], expected, atol=1e-6)
    assert np.abs(expected - teacher[kernel]).max() > 0.01
    again = json.loads((tmp_path / "out/slam.json").read_text())
    assert again["method"]["conditioning"] == "snr" and "image_size" not in again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "steps"),
    [
        ("sd15", (1, 4)),
        ("sdxl", (2,)),
        pytest.param("sd15", stock_pipeline.STEPS, marks=pytest.mark.nightly),
    ],
)
def test_the_stock_pipeline_of_the_teacher_draws_our_pictures(teachers, tmp_path, family, steps):
    """With the file, LCMScheduler and guidance 1, as its card says; ours are drawn with the
    weights before they were written as float16, or with those that were read."""
    student, teacher = tiny_loras.make(teachers[family])
    teacher.export(student, tmp_path / "out")
    model = as_model(student, tiny_loras.CONFIG, teacher)
    if family == "sdxl":
        model = load(str(tmp_path / "out"))

    def prepare(pipeline):
        pipeline.load_lora_weights(tmp_path / "out", weight_name=FILE)
        pipeline.scheduler = LCMScheduler.from_pretrained(tmp_path / "out" / "scheduler")

    images = stock_pipeline.compare(
        model, teachers[family], stock_pipeline.PROMPTS, steps, prepare=prepare
    )
    for ours, stock in images.values():
        assert np.abs(ours - stock).max() * 127.5 <= 0.5  # float16 in the file; promised are 2
        assert np.all(ours.std(axis=(1, 2, 3)) > 0.05)


def test_the_lora_of_a_student_that_was_trained_whole(teachers, tmp_path):
    """All its weights were changed: what a LoRA of rank 4 has of that is said."""
    student, family = tiny_students.make(teachers["sd15"], "snr")
    made = with_lora(student, family, 4, lora.TARGETS)
    kept = made.info["lora_keeps"]
    assert 0.02 < kept < 0.9 and made.params is student.params
    few = with_lora(student, family, 4, ["to_q"])  # as the run's config.student.targets
    assert {path.rsplit(".", 2)[0][-5:] for path in flatten(few.lora)} == {".to_q"}
    assert few.info["lora_keeps"] < kept
    family.export(made, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"a LoRA that has {kept:.1%} of what was trained, of rank 4" in card
    assert json.loads((tmp_path / "out" / "slam.json").read_text())["lora_keeps"] == kept
    loaded = load(str(teachers["sd15"]), LoadOptions(loras=(str(tmp_path / "out"),)))
    teacher = flatten(family.weights(tiny_loras.CONFIG.precision)["denoiser"])
    ours, whole = flatten(loaded.params), flatten(student.params)
    rest = sum(np.sum((ours[path] - whole[path]) ** 2) for path in teacher)
    change = sum(np.sum((teacher[path] - whole[path]) ** 2) for path in teacher)
    assert 1 - rest / change == pytest.approx(kept, abs=1e-3)
    tells_gamma, _ = tiny_students.make(teachers["sd15"], "both")
    for other, rank, message in (
        (made, 4, "the student of this run is a LoRA; it is exported anyway"),
        (
            tiny_students.make(teachers["sd15"], "both")[0],
            4,
            "has an input for gamma, which a LoRA",
        ),
        (student, 1000, "rank = 1000, expected at most"),
        (student, 0, "rank = 0, expected 1 or more"),
    ):
        with pytest.raises(InputError, match=f"^--extract-lora: .*{message}"):
            with_lora(other, family, rank, lora.TARGETS)


def as_left(run, teacher):
    make_run(run, teacher, (1,), "snr")


def trained(run, teacher):
    flags = ["--config.method.conditioning=snr", "--config.training.steps=2"]
    tiny_runs.launch(teacher, run, *flags, "--config.training.sample_every=0")


@pytest.mark.parametrize("make", [as_left, pytest.param(trained, marks=pytest.mark.nightly)])
def test_the_lora_of_a_run_that_trained_all_weights(teachers, tmp_path, capsys, make):
    """What the command prints is what the file has of the change, by its arrays."""
    run, out = tmp_path / "run", tmp_path / "out"
    make(run, teachers["sd15"])
    capsys.readouterr()
    more = ["--extract-lora", "4", "--lora-keys", "diffusers"]
    export.main(["--workdir", str(run), "--out", str(out), *more])
    share, said = capsys.readouterr().out.splitlines()
    assert said == f"student: {out}"
    models = load(str(teachers["sd15"])), load(str(out))
    before, after = (flatten(model.params) for model in models)
    arrays, rest, change = load_file(out / "pytorch_lora_weights.safetensors"), 0.0, 0.0
    for path in before:
        delta = after[path].astype(np.float64) - before[path]
        change += np.sum(delta**2)
        key = f"unet.{path.removesuffix('.kernel')}.lora_"
        if f"{key}A.weight" in arrays:
            down, up = (arrays[f"{key}{side}.weight"].astype(np.float64) for side in "AB")
            assert down.shape[0] == 4
            of_torch = np.tensordot(up.reshape(up.shape[:2]), down, 1)  # [out, in, ...]
            delta = delta - np.moveaxis(of_torch, (0, 1), (-1, -2))
        rest += np.sum(delta**2)
    match = re.fullmatch(r"the LoRA has (\d+\.\d)% of the student's change", share)
    assert float(match[1]) == pytest.approx(100 * (1 - rest / change), abs=0.1)
    assert 5 < float(match[1]) < 99
    assert (out / "unet").is_dir() and share[len("the LoRA has ") :].split()[0] in (
        out / "README.md"
    ).read_text()


def test_a_sampler_that_needs_jax_alone_has_no_lora_to_extract(tmp_path):
    arguments = ["--model", "x", "--artifact", "--out", str(tmp_path / "out")]
    expected = "^error: --extract-lora: is for an export without --artifact$"
    with pytest.raises(SystemExit, match=expected):
        export.main([*arguments, "--extract-lora", "4"])


def test_a_metric_that_compares_with_the_teacher_takes_no_lora(exported):
    given = dict(model=str(exported), teacher="runs/teacher", lora=["style.safetensors"])
    arguments = argparse.Namespace(**given)
    with pytest.raises(InputError, match="^--lora: would change the student and not the teacher"):
        read_teacher(arguments, load(str(exported)))
