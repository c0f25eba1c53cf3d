"""From a Stable Diffusion folder to a student: training, resuming, drawing; and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import interrupt_in_step
from PIL import Image
from tiny_runs import launch, run_without_torch

from slam_jax.commands import sample
from slam_jax.formats import safetensors as weights
from slam_jax.formats.flax_folder import load_model


def draw(model, out, *more):
    sample.main(["--model", str(model), "--seed", "3", "--out", str(out), *more])
    return np.asarray(Image.open(out if out.suffix else out / "sheet.png"))


def test_run_leaves_checkpoints_pictures_report_and_a_diffusers_folder(finished_sd):
    names = {path.name for path in finished_sd.iterdir()}
    assert names == {
        *("config.json", "teacher.json", "checkpoints", "metrics.jsonl", "tensorboard"),
        *("samples", "summary.json", "summary.md", "export", ".lock"),
        *("run.json", "report.html", "teacher_metrics.json"),
    }
    ladders = {path.name for path in (finished_sd / "samples").iterdir()}
    assert ladders == {
        *("ladder.png", "step_000002.png", "step_000004.png"),
        *("ladder", "step_000002", "step_000004"),
    }
    rows = json.loads((finished_sd / "summary.json").read_text())["results"]
    assert [(row["model"], row["steps"]) for row in rows] == [("teacher", 2), ("student", 1)]
    assert 0 < rows[1]["rmse_to_teacher"] < 1
    metrics = [json.loads(row) for row in (finished_sd / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [2, 4]
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in metrics)
    record = json.loads((finished_sd / "export/slam.json").read_text())
    assert record["method"]["w"] == 8.0 and record["teacher"]["fingerprints"]
    student = load_model(finished_sd / "export/flax")
    assert student.network["time_cond_proj_dim"] == 256
    assert np.any(student.params["time_embedding"]["cond_proj"]["kernel"])  # gamma was learnt


@pytest.mark.nightly
def test_ctrl_c_saves_and_resume_ends_in_the_same_bits(
    teachers, finished_sd, tmp_path, monkeypatch
):
    interrupt_in_step(monkeypatch, 3)
    with pytest.raises(SystemExit) as exit_:
        launch(teachers["sd15"], tmp_path / "run", "--config.data.workers=1")
    assert exit_.value.code == 130
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="has not finished"):
        draw(tmp_path / "run", tmp_path / "x.png", "--prompt", "a cat")
    moved = shutil.copytree(teachers["sd15"], tmp_path / "moved")  # the same weights elsewhere
    launch(moved, tmp_path / "run", "--resume")
    ours, theirs = (load_model(run / "export/flax") for run in (tmp_path / "run", finished_sd))
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_other_data_are_refused_when_a_run_goes_on_and_nothing_is_changed(
    teachers, finished_sd, tmp_path
):
    record = (finished_sd / "config.json").read_bytes()
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("black")
    with pytest.raises(SystemExit, match=r"config.data: .*not the examples.*15 then, 1 now"):
        launch(teachers["sd15"], finished_sd, "--resume", f"--config.data.source={tmp_path}")
    assert (finished_sd / "config.json").read_bytes() == record


def test_another_teacher_is_refused_when_a_run_goes_on(teachers, finished_sd, tmp_path):
    other = shutil.copytree(teachers["sd15"], tmp_path / "other")
    path = other / "unet/diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # a bit of the last weight's exponent
    path.write_bytes(content)
    with pytest.raises(SystemExit, match="its unet is not the one that the run in"):
        launch(other, finished_sd, "--resume")


# SDXL has all that the other families have not: two text encoders, and sizes. Steps and pictures of
# every family are compared with torch's in test_sd_step and test_export.
XL = [
    *("--config.method.conditioning=snr", "--config.method.sigma=linear"),
    *("--config.method.gamma=paired", "--config.method.gammas_per_subpath=2"),
    *("--config.precision.teacher=bfloat16", "--config.precision.vae=bfloat16"),
    "--config.data.flip=True",
]


@pytest.mark.nightly
def test_sdxl_trains_and_draws(teachers, tmp_path):
    launch(teachers["sdxl"], tmp_path / "run", *XL, config="sdxl")
    image = draw(tmp_path / "run", tmp_path / "x.png", "--prompt", "two cats", "--steps", "2")
    assert image.shape == (64, 64, 3) and image.std() > 1
    student = load_model(tmp_path / "run/export/flax")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(student.params)} == {"float32"}


def test_a_folder_of_pictures_with_their_parameters(finished_sd, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog on a red sofa\n")
    out, arguments = tmp_path / "out", ["--prompts", f"{tmp_path}/prompts.txt", "--count", "2"]
    sheet = draw(finished_sd, out, *arguments, "--batch", "3", "--steps", "1")
    assert sheet.shape == (72, 4 * 68 + 4, 3)
    pictures = [Image.open(out / f"{i:05d}.png") for i in range(4)]
    facts = [json.loads(picture.text["parameters"]) for picture in pictures]
    assert [fact["prompt"] for fact in facts] == ["a cat"] * 2 + ["a dog on a red sofa"] * 2
    assert facts[3] == {
        **{"prompt": "a dog on a red sofa", "index": 3, "model": str(finished_sd), "steps": 1},
        **{"guidance": 1.0, "seed": 3, "width": 64, "height": 64, "dtype": "float32"},
    }
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    assert len(np.unique(arrays.reshape(4, -1), axis=0)) == 4
    # Batches change nothing but rounding.
    one = draw(finished_sd, tmp_path / "one.png", "--prompt", "a cat", "--steps", "1")
    assert np.abs(arrays[0].astype(int) - one).max() <= 1


@pytest.mark.slow
def test_image_to_image_keeps_more_of_the_image_with_less_strength(finished_sd, tmp_path):
    photograph = np.tile(np.linspace(0, 255, 96, dtype=np.uint8)[:, None, None], (1, 80, 3))
    Image.fromarray(photograph).save(tmp_path / "in.png")
    start = ["--prompt", "", "--image", f"{tmp_path}/in.png", "--steps", "2"]
    drawn = {
        strength: draw(finished_sd, tmp_path / f"{strength}.png", *start, "--strength", strength)
        for strength in ("0.04", "0.5")
    }
    assert drawn["0.5"].shape == (64, 64, 3)
    assert np.abs(drawn["0.5"].astype(float) - drawn["0.04"]).mean() > 2
    facts = json.loads(Image.open(tmp_path / "0.5.png").text["parameters"])
    assert facts["strength"] == 0.5 and facts["image"].endswith("in.png")


@pytest.mark.slow
def test_a_teacher_draws_with_guidance_and_other_sizes(teachers, tmp_path):
    arguments = ["--prompt", "a cat", "--steps", "2", "--width", "80", "--height", "48"]
    guided = draw(teachers["sd15"], tmp_path / "a.png", *arguments)
    assert guided.shape == (48, 80, 3)
    assert json.loads(Image.open(tmp_path / "a.png").text["parameters"])["guidance"] == 7.5
    plain = draw(teachers["sd15"], tmp_path / "b.png", *arguments, "--guidance", "1")
    assert np.abs(guided.astype(int) - plain).max() > 3


def test_what_a_prompt_loses_is_said(finished_sd, tmp_path, capsys):
    draw(finished_sd, tmp_path / "x.png", "--steps", "1", "--prompt", "cat " * 80 + "zebra")
    assert "cut off" in (said := capsys.readouterr().err) and "zebra" in said
    draw(finished_sd, tmp_path / "x.png", "--steps", "1", "--prompt", "a cat")
    assert "cut off" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a", "--guidance", "7.5"], "another gamma, 0.35 in place of 1"),
        ([], "--prompt or --prompts"),
        (["--prompt", "a", "--labels", "1"], "--labels"),
        (["--prompts", "/nowhere.txt"], "/nowhere.txt"),
        (["--prompt", "a", "--prompts", "x"], "expected one of them"),
        (["--prompt", "a", "--width", "100"], "width = 100: expected a positive multiple of 8"),
        (["--prompt", "a", "--height", "0"], "height = 0"),
        (["--prompt", "a", "--image", f"{__file__}"], "cannot be read as a picture"),
        (["--prompt", "a", "--image", "/nowhere.png"], "/nowhere.png"),
        (["--prompt", "a", "--steps", "60"], "--steps: 60 must be between 1 and 50"),
        (["--prompt", "a", "--strength", "2"], "--strength 2"),
        (["--prompt", "a", "--revision", "main"], "a local folder has no revision"),
        (["--prompt", "a", "--variant", "fp16"], "fp16"),
    ],
)
def test_sample_refuses_bad_input_in_one_line(finished_sd, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        sample.main(["--model", str(finished_sd), "--out", str(tmp_path / "x.png"), *arguments])
    assert message in str(exit_.value) and "\n" not in str(exit_.value)
    assert not (tmp_path / "x.png").exists()


def test_a_teacher_takes_no_image(teachers, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "in.png")
    with pytest.raises(SystemExit, match="--image: .*sd15 is a teacher"):
        draw(
            *(teachers["sd15"], tmp_path / "x.png", "--prompt", "a"),
            *("--image", f"{tmp_path}/in.png"),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.teacher.path=", "config.teacher.path = ''"),
        ("--config.teacher.path=/nowhere/sd", "/nowhere/sd"),
        ("--config.teacher.variant=fp16", "fp16"),
        ("--config.data.resolution=100", "config.data.resolution = 100"),
        ("--config.data.source=laion", "config.data: 'laion': no such folder"),
        ("--config.precision.vae=float16", "config.precision.vae = 'float16'"),
        ("--config.method.num_ddim_timesteps=30", "config.method.num_ddim_timesteps"),
        ("--config.training.batch_size=12", "config.training.batch_size = 12"),
    ],
)
def test_bad_option_is_refused_before_anything_is_written(teachers, tmp_path, change, message):
    with pytest.raises(SystemExit) as exit_:
        launch(teachers["sd15"], tmp_path / "run", change)
    assert message in str(exit_.value) and "\n" not in str(exit_.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_distilling_drawing_and_exporting_need_no_torch(finished_sd, tmp_path):
    """The run itself was made in such a process."""
    picture, student = tmp_path / "cat.png", tmp_path / "student"
    run_without_torch(
        ["sample", "--model", str(finished_sd), "--prompt", "a cat", "--out", str(picture)],
        ["export", "--workdir", str(finished_sd), "--step", "2", "--out", str(student)],
    )
    assert picture.exists() and (student / "slam.json").exists()


def test_a_student_is_no_teacher(finished_sd, tmp_path):
    with pytest.raises(SystemExit, match="a few-step student") as exit_:
        launch(finished_sd / "export", tmp_path / "run")
    assert "\n" not in str(exit_.value) and not (tmp_path / "run").exists()


def test_pictures_that_are_not_finite_are_not_written(finished_sd, tmp_path):
    folder = shutil.copytree(finished_sd / "export", tmp_path / "student")
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    arrays = weights.load_arrays(path)
    arrays["conv_out.bias"] = np.full_like(arrays["conv_out.bias"], np.nan)
    weights.save_arrays(path, arrays)
    with pytest.raises(SystemExit, match="picture 0 is not finite"):
        draw(folder, tmp_path / "x.png", "--prompt", "a", "--steps", "1")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("out", ["file", "folder.png", "x.jpg"])
def test_a_place_that_cannot_be_written_is_refused_before_drawing(finished_sd, tmp_path, out):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SystemExit, match="--out .*expected a folder, or a file that ends in"):
        sample.main(["--model", str(finished_sd), "--prompt", "a", "--out", str(tmp_path / out)])
