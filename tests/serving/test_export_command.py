"""The export command: from a run's checkpoint, and compared with the stock pipeline."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_students
from helpers import files_in
from interrupted_runs import make_run, save_checkpoints
from small_digits import PIPELINE, UNET

from slam_jax.commands import export
from slam_jax.config.options import default_config
from slam_jax.config.validate import freeze, to_json
from slam_jax.formats import safetensors as weights
from slam_jax.formats.flax_folder import SavedModel, load_model, save_model
from slam_jax.recipes.student import load
from slam_jax.serving import artifact, stock_pipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def interrupted(teachers, tmp_path_factory):
    """The workdir of a run with checkpoints 1 and 2, not to be changed."""
    workdir = tmp_path_factory.mktemp("runs") / "sd"
    make_run(workdir, teachers["sd15"])
    return workdir


def error_of(*arguments):
    """What the command line says, in one line, when it fails."""
    with pytest.raises(SystemExit) as stop:
        export.main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize(
    ("arguments", "step"), [([], 2), (["--step", "1"], 1), (["--step", "best"], 1)]
)
def test_export_of_a_checkpoint(interrupted, teachers, tmp_path, capsys, arguments, step):
    before, out = files_in(interrupted), tmp_path / "out"
    export.main(["--workdir", str(interrupted), "--out", str(out), *arguments])
    said = capsys.readouterr()
    assert said.out == f"student: {out}\n"
    assert f"the student of step {step}, of " in said.err
    expected, _ = tiny_students.make(teachers["sd15"], seed=step)
    loaded = load(str(out))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded.params), expected.params)
    assert loaded.info["checkpoint"] == step and loaded.info["precision"]["vae"] == "float32"
    assert files_in(interrupted) == before


def test_a_student_draws_at_the_size_that_it_was_trained_at(interrupted, tmp_path):
    workdir, out = shutil.copytree(interrupted, tmp_path / "run"), tmp_path / "out"
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["resolution"] = 48
    (workdir / "config.json").write_text(json.dumps(config))
    export.main(["--workdir", str(workdir), "--out", str(out)])
    factor = load(str(out)).pipeline.vae.downscale
    assert load(str(out)).pipeline.image_size == (48, 48)
    unet = json.loads((out / "unet" / "config.json").read_text())  # which diffusers reads
    assert unet["sample_size"] == 48 // factor


def test_without_out_it_is_found_under_the_workdirs_name(interrupted, tmp_path):
    workdir = shutil.copytree(interrupted, tmp_path / "run")
    export.main(["--workdir", str(workdir)])
    assert load(str(workdir)).info["checkpoint"] == 2


def test_export_refuses_what_it_cannot_find(interrupted, teachers, tmp_path):
    out = ("--out", tmp_path / "out")
    assert "has no such checkpoint, it has 1, 2" in error_of(
        "--workdir", interrupted, *out, "--step", 7
    )
    assert "config.json: cannot be read" in error_of("--workdir", tmp_path, *out)
    expected = "error: --merge: the student of this run was trained whole; leave it out"
    assert error_of("--workdir", interrupted, *out, "--merge") == expected
    expected = "error: --lora-keys: this export has no LoRA file; leave it out"
    assert error_of("--workdir", interrupted, *out, "--lora-keys", "diffusers") == expected
    workdir = shutil.copytree(interrupted, tmp_path / "run")
    (workdir / "config.json").write_text("{")
    assert "config.json: damaged" in error_of("--workdir", workdir, *out)
    shutil.copy(interrupted / "config.json", workdir)
    (workdir / "teacher.json").unlink()
    assert "teacher.json: cannot be read" in error_of("--workdir", workdir, *out)
    shutil.copy(interrupted / "teacher.json", workdir)
    message = error_of("--workdir", workdir, *out, "--teacher", teachers["sd21"])
    assert "its unet is not the one that the run" in message
    config = json.loads((interrupted / "config.json").read_text())
    config["training"]["best_metric"] = "rmse_to_teacher_4"
    (workdir / "config.json").write_text(json.dumps(config))
    assert "--step best: no checkpoint" in error_of("--workdir", workdir, *out, "--step", "best")
    shutil.rmtree(workdir / "checkpoints" / "2" / "state")
    assert "checkpoints/2: damaged" in error_of("--workdir", workdir, *out)
    shutil.rmtree(workdir / "checkpoints")
    assert "no checkpoint in it yet" in error_of("--workdir", workdir, *out)
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_was_moved(interrupted, teachers, tmp_path):
    workdir = shutil.copytree(interrupted, tmp_path / "run")
    moved = shutil.copytree(teachers["sd15"], tmp_path / "elsewhere")
    config = json.loads((workdir / "config.json").read_text())
    config["teacher"]["path"] = str(tmp_path / "gone")
    (workdir / "config.json").write_text(json.dumps(config))
    assert "gone" in error_of("--workdir", workdir)
    export.main(["--workdir", str(workdir), "--teacher", str(moved)])
    assert load(str(workdir)).info["teacher"]["path"] == str(moved)


@pytest.mark.slow
def test_export_of_a_real_run(finished_sd, tmp_path):
    """What the run exports at its end is what the command makes of its last checkpoint."""
    workdir, out = finished_sd, tmp_path / "out"
    export.main(["--workdir", str(workdir), "--out", str(out)])
    of_run, of_command = files_in(workdir / "export"), files_in(out)
    for record in ("slam.json", "flax/config.json"):
        expected, found = json.loads(of_run.pop(record)), json.loads(of_command.pop(record))
        if record == "flax/config.json":
            assert found["network"] == expected["network"]
            expected, found = expected["info"], found["info"]
        assert found.pop("checkpoint") == 4
        assert found == expected
    assert of_command == of_run
    export.main(["--workdir", str(workdir), "--out", str(out), "--step", "2"])
    first, last = load_model(out / "flax").params, load_model(workdir / "export/flax").params
    assert not np.array_equal(first["conv_in"]["kernel"], last["conv_in"]["kernel"])


def test_verify_prints_a_row_for_each_step_count_and_fails_on_a_difference(
    interrupted, tmp_path, capsys, monkeypatch
):
    shift = 0.0

    def compare(model, folder, prompts, steps):
        assert (folder / "slam.json").exists() and model.method.num_ddim_timesteps == 50
        rng = np.random.default_rng(0)
        images = {n: rng.uniform(-1, 1, (2, 8, 8, 3)) for n in steps}
        return {n: (x, x + (shift / 127.5 if n == 4 else 0)) for n, x in images.items()}

    monkeypatch.setattr(stock_pipeline, "compare", compare)
    arguments = ["--workdir", str(interrupted), "--out", str(tmp_path / "out"), "--verify"]
    for shift in (1.9, 2.1, np.nan):
        if shift == 1.9:
            export.main(arguments)
        else:
            assert "pictures of 4 steps differ" in error_of(*arguments)
        assert (tmp_path / "out/slam.json").exists()  # an earlier one, once it has been verified
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:5]]
        assert [row[0] for row in rows] == ["1", "2", "4", "8"]
        assert [row[1] for row in rows] == ["0.000", "0.000", f"{shift:.3f}", "0.000"]


def test_verify_without_torch_says_what_to_install(interrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(stock_pipeline.importlib.util, "find_spec", lambda name: None)
    message = error_of("--workdir", interrupted, "--out", tmp_path / "out", "--verify")
    assert message == "error: --verify: needs torch and diffusers; pip install torch diffusers"
    assert not (tmp_path / "out").exists()


def test_a_digits_student_is_two_files(tmp_path):
    config = default_config()
    config.teacher.family = config.data.source = "digits"
    config.teacher.network = UNET.to_dict()
    config.method.conditioning = "snr"
    config, workdir = freeze(config), tmp_path / "run"
    teacher = jax.device_get(PIPELINE.init(UNET, jax.random.key(0)))
    saved = SavedModel("digits", config.teacher.network, teacher, {}, {"is": "teacher"})
    save_model(workdir / "teacher", saved)
    (workdir / "config.json").write_text(to_json(config))
    ema = jax.tree.map(lambda a: a + 1, teacher)
    save_checkpoints(workdir, {3: ema})
    for _ in range(2):  # the second time it replaces the first
        export.main(["--workdir", str(workdir)])
    names = sorted(path.name for path in (workdir / "export").iterdir())
    assert names == ["config.json", "flax_params.safetensors"]
    loaded = load(str(workdir))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, ema)
    assert loaded.info["teacher"]["is"] == "teacher" and loaded.info["checkpoint"] == 3
    assert "no pipeline for digits" in error_of("--workdir", workdir, "--verify")
    assert "no earlier export" in error_of("--workdir", workdir, "--out", workdir)


def test_a_sampler_of_a_run(interrupted, teachers, tmp_path, monkeypatch, capsys):
    """Without --out it is in the workdir; what is exported besides is not touched."""
    monkeypatch.setattr(artifact, "_compile", lambda folder, environment: None)
    workdir = shutil.copytree(interrupted, tmp_path / "run")
    options = ["--platforms", "cpu", "--batch-sizes", "1", "--steps", "1", "--dtype", "bfloat16"]
    export.main(["--workdir", str(workdir), "--step", "1", "--artifact", *options])
    out = workdir / "artifact"
    assert capsys.readouterr().out.startswith(f"sampler: {out}\ntry it: python {out}/draw.py")
    assert json.loads((out / "artifact.json").read_text())["info"]["checkpoint"] == 1
    arrays = weights.load_arrays(out / "weights.safetensors")
    dtypes = {name.split(".")[0]: array.dtype.name for name, array in arrays.items()}
    assert dtypes == {"denoiser": "bfloat16", "text_encoder": "bfloat16", "vae": "float32"}
    student, _ = tiny_students.make(teachers["sd15"], seed=1)
    kernel = student.params["conv_in"]["kernel"].astype("bfloat16")
    np.testing.assert_array_equal(arrays["denoiser.conv_in.kernel"], kernel)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir or --model: expected one"),
        (["--workdir", "w", "--model", "m"], "--workdir or --model: expected one"),
        (["--model", "m", "--artifact"], "--model: needs --artifact and --out"),
        (["--model", "m", "--out", "o"], "--model: needs --artifact and --out"),
        (["--workdir", "w", "--steps", "0"], "--steps: is for --artifact"),
        (["--workdir", "w", "--steps", "2"], "--steps: is for --artifact"),
        (["--workdir", "w", "--batch-sizes", "2"], "--batch-sizes: is for --artifact"),
        (["--workdir", "w", "--artifact", "--verify"], "--verify: is for an export without"),
        (["--workdir", "w", "--artifact", "--merge"], "--merge: is for an export without"),
        (["--workdir", "w", "--artifact", "--lora-keys", "diffusers"], "--lora-keys: is for an"),
        (["--workdir", "w", "--artifact", "--lora", "l"], "--lora: is for --model"),
        (["--workdir", "w", "--allow-unused"], "--allow-unused: is for --model"),
        (["--workdir", "w", "--artifact", "--method", "lcm"], "--method: is for --model"),
        (["--model", "m", "--out", "o", "--artifact", "--step", "1"], "--step: is for --workdir"),
        (["--workdir", "w", "--artifact", "--platforms", "gpu"], "--platforms: gpu, expected"),
        (["--workdir", "w", "--artifact", "--batch-sizes", "0"], "--batch-sizes: expected"),
    ],
)
def test_options_that_do_not_belong_together(arguments, message):
    assert message in error_of(*arguments)
