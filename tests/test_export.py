"""Exports: the stock pipeline draws our pictures; whole or not at all; from a run's checkpoint."""

import dataclasses
import errno
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_stable_diffusion
import tiny_students
import torch
from diffusers import AutoencoderKL, LCMScheduler, StableDiffusionPipeline
from flax import serialization
from safetensors.torch import load_file

from slam_jax import export, main, torch_check
from slam_jax.checkpoint import Checkpoints
from slam_jax.config import default_config
from slam_jax.errors import InputError
from slam_jax.export import write_folder
from slam_jax.freeze import freeze, to_json
from slam_jax.models import functional, weights
from slam_jax.models.folder import Folder, read_params, resolve
from slam_jax.models.folder_write import lcm_scheduler
from slam_jax.models.load import load
from slam_jax.models.saved import SavedModel, load_model, save_model
from slam_jax.models.unet import UNet2DConditionModel
from slam_jax.models.vae import AutoencoderKL as OurAutoencoderKL
from slam_jax.models.vae import VAEConfig
from slam_jax.sampler import consistency_timesteps
from slam_jax.schedule import NoiseSchedule, boundary_scalings
from slam_jax.train import TrainState

ROOT = Path(__file__).parents[1]
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(scope="module")
def sd15(teachers):
    """A student and its teacher."""
    return tiny_students.make(teachers["sd15"])


@pytest.fixture(scope="module")
def exported(sd15, tmp_path_factory):
    """A finished export, not to be changed."""
    out = tmp_path_factory.mktemp("exports") / "sd15"
    write_folder(*sd15, out)
    return out


def read_json(path):
    return json.loads(path.read_text())


def files_in(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("num_ddim_timesteps", [50, 20, 1000])
@pytest.mark.parametrize(
    "teacher",
    [
        *tiny_stable_diffusion.SCHEDULERS.values(),
        {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        {"_class_name": "DDIMScheduler"},  # whose defaults are not those of LCMScheduler
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 3000, "clip_sample": True},
    ],
)
def test_diffusers_scheduler_is_the_samplers(teacher, num_ddim_timesteps):
    scheduler = LCMScheduler.from_config(lcm_scheduler(teacher, num_ddim_timesteps))
    ours = NoiseSchedule.from_config(teacher)
    count = ours.num_train_timesteps
    for steps in range(1, min(50, num_ddim_timesteps) + 1):
        scheduler.set_timesteps(steps)
        expected = consistency_timesteps(steps, num_ddim_timesteps, count)
        assert scheduler.timesteps.tolist() == expected.tolist()
    # abar = 0 of a zero-terminal-SNR schedule is 2^-24 here.
    np.testing.assert_allclose(scheduler.alphas_cumprod, ours.alphas**2, rtol=1e-4, atol=2.0**-23)
    t = np.arange(count)
    scales = scheduler.get_scalings_for_boundary_condition_discrete(torch.from_numpy(t).double())
    for theirs, scale in zip(scales, boundary_scalings(t), strict=True):
        np.testing.assert_allclose(scale, theirs, rtol=1e-5)
    assert scheduler.config.prediction_type == ours.prediction_type
    assert not scheduler.config.clip_sample and not scheduler.config.thresholding


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("family", "conditioning"),
    [
        ("sd15", "both"),
        pytest.param("sd15", "snr", marks=slow),
        pytest.param("sd21", "both", marks=slow),
        pytest.param("sd21", "snr", marks=slow),
        pytest.param("sd21_v", "both", marks=slow),
        pytest.param("sd21_v", "snr", marks=slow),
        pytest.param("sdxl", "both", marks=slow),
        pytest.param("sdxl", "snr", marks=slow),
        pytest.param("zero_snr", "both", marks=slow),
    ],
)
def test_the_stock_pipeline_draws_our_pictures(teachers, tmp_path, family, conditioning):
    out = tmp_path / "student"
    student, teacher = tiny_students.make(teachers[family], conditioning)
    write_folder(student, teacher, out)
    steps, model = torch_check.STEPS, export.as_model(student, teacher)
    images = torch_check.compare(model, out, torch_check.PROMPTS, steps)
    assert list(images) == [1, 2, 4, 8]
    for ours, stock in images.values():
        assert ours.shape == stock.shape == (2, 64, 64, 3)
        # Promised are 2 of 255. This VAE's first normalisation hides most of a wrong scale, so
        # only rounding is let through, and our alpha of 2^-12 where diffusers has 0.
        assert np.abs(ours - stock).max() * 127.5 <= (0.2 if family == "zero_snr" else 0.02)
        assert np.all(ours.std(axis=(1, 2, 3)) > 0.05)
        assert np.abs(ours[0] - ours[1]).max() > 0.2  # the prompts and the noise matter
    for fewer, more in zip(steps, steps[1:], strict=False):
        assert np.abs(images[fewer][0] - images[more][0]).max() > 0.05
    dim = None if conditioning == "snr" else 256
    assert read_json(out / "unet" / "config.json")["time_cond_proj_dim"] == dim


def test_the_pipeline_that_a_user_gets(exported):
    """from_pretrained as the model card says it, with nothing replaced afterwards."""
    pipeline = StableDiffusionPipeline.from_pretrained(exported)
    assert type(pipeline.scheduler) is LCMScheduler
    assert pipeline.safety_checker is None and pipeline.feature_extractor is None
    modules = [pipeline.unet, pipeline.vae, pipeline.text_encoder]
    assert {module.dtype for module in modules} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a red fox", num_inference_steps=2, guidance_scale=1, output_type="np").images
    assert images.shape == (1, 64, 64, 3) and images.std() > 0.01


@pytest.mark.parametrize("family", tiny_stable_diffusion.FAMILIES)
def test_what_is_in_the_folder(teachers, tmp_path, family):
    student, teacher = tiny_students.make(teachers[family], num_ddim_timesteps=20)
    student.info["data"] = {"source": "photographs"}
    write_folder(student, teacher, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    out, is_xl = tmp_path / "out", family == "sdxl"
    kind = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    index = read_json(out / "model_index.json")
    assert index["_class_name"] == kind
    assert index["scheduler"] == ["diffusers", "LCMScheduler"]
    assert index["image_encoder"] == index["feature_extractor"] == [None, None]
    assert index.get("safety_checker") == (None if is_xl else [None, None])
    assert index.get("force_zeros_for_empty_prompt") == (True if is_xl else None)
    record = read_json(out / "slam.json")
    assert record["teacher"]["path"] == str(teachers[family])
    assert len(record["teacher"]["fingerprint"]) == 64
    assert record["method"]["w"] == 8 and record["method"]["gamma"] == "uniform"
    assert record["data"] == {"source": "photographs"} and "guidance_scale=1" in record["usage"]
    card = (out / "README.md").read_text()
    assert f"{kind}.from_pretrained" in card and "w = 8" in card and "guidance_scale=1" in card
    originals, copies = files_in(teachers[family]), files_in(out)
    kept = ("vae", "text_encoder", "tokenizer")
    assert {n for n in copies if n.startswith(kept)} == {n for n in originals if n.startswith(kept)}
    for name in copies:
        if name.startswith(kept) and not name.endswith("/config.json"):
            assert copies[name] == originals[name], name
    state = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    loaded = load(str(out))
    assert loaded.is_student and loaded.num_ddim_timesteps == 20 and loaded.info == record
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded.params), student.params)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("conditioning", ["both", "snr"])
def test_torch_finds_its_keys_in_the_unet(teachers, tmp_path, family, conditioning):
    write_folder(*tiny_students.make(teachers[family], conditioning), tmp_path / "out")
    _, found = torch_check.load_unet(tmp_path / "out" / "unet", "")
    assert found == []


def test_who_may_read_the_config_may_read_the_weights(exported):
    modes = {path.stat().st_mode for path in exported.rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_the_flax_folder_loads_back(sd15, exported):
    student, loaded = sd15[0], load_model(exported / "flax")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, student.params)
    assert (loaded.unet, loaded.scheduler) == (student.unet, student.scheduler)
    assert loaded.info == student.info


def test_a_sharded_half_precision_variant(teachers, tmp_path):
    """Plain names and float32 in the export, which a pipeline with a float32 UNet needs."""
    folder, out = shutil.copytree(teachers["sd15"], tmp_path / "teacher"), tmp_path / "out"
    for component in ("unet", "vae"):
        (file,) = (folder / component).glob("*.safetensors")
        arrays = {k: a.astype(np.float16) for k, a in weights.load_arrays(file).items()}
        weights.save_arrays(file.with_suffix(".fp16.safetensors"), arrays)
        file.unlink()
    pipeline = StableDiffusionPipeline.from_pretrained(teachers["sd15"])
    where = folder / "text_encoder"
    (where / "model.safetensors").unlink()
    pipeline.text_encoder.half().save_pretrained(where, variant="fp16", max_shard_size="30KB")
    assert (where / "model.safetensors.index.fp16.json").is_file()
    write_folder(*tiny_students.make(folder, variant="fp16"), out)
    assert not [path for path in out.rglob("*") if "fp16" in path.name]
    drawn = StableDiffusionPipeline.from_pretrained(out)
    assert {drawn.unet.dtype, drawn.vae.dtype, drawn.text_encoder.dtype} == {torch.float32}
    for key, tensor in drawn.text_encoder.state_dict().items():
        torch.testing.assert_close(tensor, pipeline.text_encoder.state_dict()[key].float())


def test_float32_shards_lose_only_their_variants_name(teachers, tmp_path):
    folder, out = shutil.copytree(teachers["sd15"], tmp_path / "teacher"), tmp_path / "out"
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    for component in ("unet", "vae", "text_encoder"):
        (file,) = (folder / component).glob("*.safetensors")
        file.rename(file.with_suffix(".ema.safetensors"))
    (folder / "vae" / "diffusion_pytorch_model.ema.safetensors").unlink()
    vae.save_pretrained(folder / "vae", variant="ema", max_shard_size="50KB")
    write_folder(*tiny_students.make(folder, variant="ema"), out)
    names = sorted(path.name for path in (out / "vae").iterdir())
    assert len(names) > 3 and not [name for name in names if "ema" in name]
    copied = AutoencoderKL.from_pretrained(out / "vae").state_dict()
    for key, tensor in vae.state_dict().items():
        assert torch.equal(tensor, copied[key])


def test_a_teacher_of_flax_classes(teachers, tmp_path):
    """msgpack and "Flax..." class names go in, what torch reads comes out."""
    folder, out = shutil.copytree(teachers["sd15"], tmp_path / "teacher"), tmp_path / "out"
    config = VAEConfig.from_dict(read_json(folder / "vae" / "config.json"))
    params = read_params(resolve(str(folder)), "vae", OurAutoencoderKL, config)
    flat = functional.flatten(jax.device_get(params)).items()
    flat = {re.sub(r"\.(\d+)(?=\.)", r"_\1", path): array for path, array in flat}
    content = serialization.msgpack_serialize(functional.unflatten(flat))
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "vae" / "diffusion_flax_model.msgpack").write_bytes(content)
    vae_config = read_json(folder / "vae" / "config.json")
    vae_config["_class_name"] = "FlaxAutoencoderKL"
    (folder / "vae" / "config.json").write_text(json.dumps(vae_config))
    index = read_json(folder / "model_index.json")
    index |= {
        "_class_name": "FlaxStableDiffusionPipeline",
        "vae": ["diffusers", "FlaxAutoencoderKL"],
        "safety_checker": ["stable_diffusion", "FlaxStableDiffusionSafetyChecker"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    write_folder(*tiny_students.make(folder), out)
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    expected = AutoencoderKL.from_pretrained(teachers["sd15"] / "vae").state_dict()
    for key, tensor in pipeline.vae.state_dict().items():
        assert torch.equal(tensor, expected[key])


@pytest.mark.parametrize(
    "kind", ["LatentConsistencyModelPipeline", "StableDiffusionImg2ImgPipeline"]
)
def test_other_pipelines_become_the_plain_one(teachers, tmp_path, kind):
    folder = shutil.copytree(teachers["sd15"], tmp_path / "teacher")
    index = read_json(folder / "model_index.json")
    index |= {"_class_name": kind, "requires_safety_checker": True}
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    write_folder(*tiny_students.make(folder), tmp_path / "out")
    index = read_json(tmp_path / "out" / "model_index.json")
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == [None, None] and not index["requires_safety_checker"]


DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


def fail_at(monkeypatch, number, error):
    """From now on the `number`-th file of arrays that is written raises `error`, half written."""
    whole, written = weights.save_file, []

    def save_file(arrays, path, metadata):
        written.append(path)
        if len(written) == number:
            path.write_bytes(b"half of i")
            raise error
        whole(arrays, path, metadata=metadata)

    monkeypatch.setattr(weights, "save_file", save_file)


@pytest.mark.parametrize("number", [1, 2])  # the UNet for torch, the UNet for Flax
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (DISK_FULL, InputError),
        (weights.SafetensorError("I/O error: No space left on device (os error 28)"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
def test_a_failing_export_leaves_nothing(sd15, tmp_path, monkeypatch, number, error, raised):
    fail_at(monkeypatch, number, error)
    with pytest.raises(raised) as caught:
        write_folder(*sd15, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    if raised is InputError:
        text = str(caught.value)
        assert str(tmp_path / "out") in text and "No space left" in text and "\n" not in text


@pytest.mark.parametrize("error", [DISK_FULL, KeyboardInterrupt()])
def test_a_failing_export_keeps_the_earlier_one(sd15, exported, tmp_path, monkeypatch, error):
    out = shutil.copytree(exported, tmp_path / "out")
    before = files_in(out)
    (tmp_path / ".out.unfinished").mkdir()  # of an export that was killed
    fail_at(monkeypatch, 2, error)
    with pytest.raises((InputError, KeyboardInterrupt)):
        write_folder(*sd15, out)
    assert files_in(out) == before and list(tmp_path.iterdir()) == [out]


def test_an_export_replaces_an_earlier_one_wholly(teachers, exported, tmp_path):
    out = shutil.copytree(exported, tmp_path / "out")
    (out / "of_yesterday").write_text("")
    student, teacher = tiny_students.make(teachers["sd15"], seed=1)
    write_folder(student, teacher, out)
    assert not (out / "of_yesterday").exists() and list(tmp_path.iterdir()) == [out]
    jax.tree.map(np.testing.assert_array_equal, load_model(out / "flax").params, student.params)


def test_an_export_that_was_killed_between_its_renames_is_found_again(sd15, exported, tmp_path):
    shutil.copytree(exported, tmp_path / ".out.old")
    student = dataclasses.replace(sd15[0], info={})  # fails before anything is written
    with pytest.raises(KeyError):
        write_folder(student, sd15[1], tmp_path / "out")
    write_folder(*sd15, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_that_are_no_exports_are_left_alone(sd15, tmp_path):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.txt").write_text("years of work")
    for out in (other, other / "chapter1.txt"):
        with pytest.raises(InputError, match="no earlier export"):
            write_folder(*sd15, out)
    assert files_in(tmp_path) == {"thesis/chapter1.txt": b"years of work"}


def test_a_student_does_not_replace_its_teacher(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "teacher")
    before = files_in(folder)
    student, teacher = tiny_students.make(folder)
    for out in (folder, tmp_path):
        with pytest.raises(InputError, match="the teacher is in it"):
            write_folder(student, teacher, out)
    assert files_in(folder) == before


def test_a_missing_file_of_the_teacher_is_named(sd15, teachers, tmp_path):
    folder = shutil.copytree(teachers["sd15"], tmp_path / "teacher")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    teacher = Folder(folder, str(folder))
    with pytest.raises(InputError, match="vae/diffusion_pytorch_model.safetensors: missing"):
        write_folder(sd15[0], teacher, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [folder]


# From here on: the command line.


def make_run(workdir, folder, steps=(1, 2)):
    """A workdir as an interrupted run leaves it; the EMA of step n has tiny_students' seed n."""
    config = default_config()
    config.teacher.path, config.data.source = str(folder), "photographs"
    config.data.resolution, config.method.conditioning = 64, "both"
    workdir.mkdir()
    (workdir / "config.json").write_text(to_json(freeze(config)))
    _, teacher = tiny_students.make(folder)
    (workdir / "teacher.json").write_text(json.dumps(export.teacher_info(teacher)))
    save_checkpoints(workdir, {n: tiny_students.make(folder, seed=n)[0].params for n in steps})


def save_checkpoints(workdir, emas):
    """The raw weights and the optimiser's are not the EMA."""
    with Checkpoints(workdir / "checkpoints", keep=len(emas)) as checkpoints:
        for step, ema in emas.items():
            zeros = jax.tree.map(np.zeros_like, ema)
            checkpoints.save(step, TrainState(np.int32(step), zeros, ema, {"mu": zeros}), {})


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


@pytest.mark.parametrize(("arguments", "step"), [([], 2), (["--step", "1"], 1)])
def test_export_of_a_checkpoint(interrupted, teachers, tmp_path, capsys, arguments, step):
    before, out = files_in(interrupted), tmp_path / "out"
    export.main(["--workdir", str(interrupted), "--out", str(out), *arguments])
    assert capsys.readouterr().out == f"student: {out}\n"
    expected, _ = tiny_students.make(teachers["sd15"], seed=step)
    loaded = load(str(out))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded.params), expected.params)
    assert loaded.info["checkpoint"] == step and loaded.info["precision"]["vae"] == "float32"
    assert files_in(interrupted) == before


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
    workdir = shutil.copytree(interrupted, tmp_path / "run")
    (workdir / "config.json").write_text("{")
    assert "config.json: damaged" in error_of("--workdir", workdir, *out)
    shutil.copy(interrupted / "config.json", workdir)
    (workdir / "teacher.json").unlink()
    assert "teacher.json: cannot be read" in error_of("--workdir", workdir, *out)
    shutil.copy(interrupted / "teacher.json", workdir)
    message = error_of("--workdir", workdir, *out, "--teacher", teachers["sd21"])
    assert "weights are not those that the run" in message
    shutil.rmtree(workdir / "checkpoints" / "2" / "state")
    assert "checkpoints/2/state: damaged" in error_of("--workdir", workdir, *out)
    shutil.rmtree(workdir / "checkpoints")
    assert "no checkpoint in it yet" in error_of("--workdir", workdir, *out)
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_was_moved(interrupted, teachers, tmp_path):
    workdir = shutil.copytree(interrupted, tmp_path / "run")
    moved = shutil.copytree(teachers["sd15"], tmp_path / "elsewhere")
    config = read_json(workdir / "config.json")
    config["teacher"]["path"] = str(tmp_path / "gone")
    (workdir / "config.json").write_text(json.dumps(config))
    assert "gone" in error_of("--workdir", workdir)
    export.main(["--workdir", str(workdir), "--teacher", str(moved)])
    assert load(str(workdir)).info["teacher"]["path"] == str(moved)


@pytest.mark.slow
def test_export_of_a_real_run(teachers, tmp_path, capsys):
    """What the run exports at its end is what the command makes of its last checkpoint, and the
    stock pipeline draws its pictures."""
    workdir, out = tmp_path / "run", tmp_path / "out"
    small = ["training.steps=2", "training.batch_size=8", "training.checkpoint_every=1"]
    small += ["training.sample_every=0", "method.conditioning=both"]
    small += ["evaluation.teacher_steps=(2,)", "evaluation.student_steps=(1,)"]
    small.append(f"teacher.path={teachers['sd15']}")
    config = ["--config", f"{ROOT}/configs/sd.py:tiny", "--workdir", str(workdir)]
    main.main([*config, *(f"--config.{option}" for option in small)])
    export.main(["--workdir", str(workdir), "--out", str(out), "--verify"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-5:-1]]
    assert [row[0] for row in rows] == ["1", "2", "4", "8"]
    assert all(float(row[1]) < 0.02 for row in rows)
    of_run, of_command = files_in(workdir / "export"), files_in(out)
    for record in ("slam.json", "flax/config.json"):
        expected, found = json.loads(of_run.pop(record)), json.loads(of_command.pop(record))
        if record == "flax/config.json":
            assert found["unet"] == expected["unet"]
            expected, found = expected["info"], found["info"]
        assert found.pop("checkpoint") == 2
        assert found == expected
    assert of_command == of_run
    export.main(["--workdir", str(workdir), "--out", str(out), "--step", "1"])
    first, last = load_model(out / "flax").params, load_model(workdir / "export/flax").params
    assert not np.array_equal(first["conv_in"]["kernel"], last["conv_in"]["kernel"])


def test_verify_prints_a_row_for_each_step_count_and_fails_on_a_difference(
    interrupted, tmp_path, capsys, monkeypatch
):
    shift = 0.0

    def compare(model, folder, prompts, steps):
        assert folder == tmp_path / "out" and model.num_ddim_timesteps == 50
        rng = np.random.default_rng(0)
        images = {n: rng.uniform(-1, 1, (2, 8, 8, 3)) for n in steps}
        return {n: (x, x + (shift / 127.5 if n == 4 else 0)) for n, x in images.items()}

    monkeypatch.setattr(torch_check, "compare", compare)
    arguments = ["--workdir", str(interrupted), "--out", str(tmp_path / "out"), "--verify"]
    for shift in (1.9, 2.1, np.nan):
        if shift == 1.9:
            export.main(arguments)
        else:
            assert "pictures of 4 steps differ" in error_of(*arguments)
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:5]]
        assert [row[0] for row in rows] == ["1", "2", "4", "8"]
        assert [row[1] for row in rows] == ["0.000", "0.000", f"{shift:.3f}", "0.000"]


def test_verify_without_torch_says_what_to_install(interrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_check.importlib.util, "find_spec", lambda name: None)
    message = error_of("--workdir", interrupted, "--out", tmp_path / "out", "--verify")
    assert message == "error: --verify: needs torch and diffusers; pip install torch diffusers"
    assert not (tmp_path / "out").exists()


def test_a_digits_student_is_two_files(tmp_path):
    config = default_config()
    config.digits.unet.update(sample_size=4, block_out_channels=(8,), norm_num_groups=8)
    config.digits.unet.update(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    config.digits.unet.update(cross_attention_dim=12, attention_head_dim=2, layers_per_block=1)
    config.method.conditioning = "snr"
    config, workdir = freeze(config), tmp_path / "run"
    teacher = functional.init(UNet2DConditionModel, config.digits.unet, jax.random.key(0))
    teacher = jax.device_get(teacher)
    save_model(workdir / "teacher", SavedModel(config.digits.unet, teacher, {}, {"is": "teacher"}))
    (workdir / "config.json").write_text(to_json(config))
    ema = jax.tree.map(lambda a: a + 1, teacher)
    save_checkpoints(workdir, {3: ema})
    for _ in range(2):  # the second time it replaces the first
        export.main(["--workdir", str(workdir)])
    names = sorted(path.name for path in (workdir / "export").iterdir())
    assert names == ["config.json", "flax_params.safetensors"]
    loaded = load(str(workdir))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, ema)
    assert loaded.info["teacher"] == {"is": "teacher"} and loaded.info["checkpoint"] == 3
    assert "no pipeline for digits" in error_of("--workdir", workdir, "--verify")
    assert "no earlier export" in error_of("--workdir", workdir, "--out", workdir)
