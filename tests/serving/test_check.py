"""The check of published students: ok on the layouts there are, FAIL on each thing broken."""

import json
import shutil

import numpy as np
import pytest
import tiny_students
from check_run import run
from PIL import Image

from slam_jax.formats import safetensors as weights
from slam_jax.serving import published, published_kinds, stock_networks, stock_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def originals(teachers, tmp_path_factory):
    """Exported students by conditioning, and their teacher; not to be changed."""
    folder = tmp_path_factory.mktemp("originals")
    teacher = shutil.copytree(teachers["sd15"], folder / "teacher")
    for conditioning in ("both", "snr"):
        student, family = tiny_students.make(teacher, conditioning)
        family.export(student, folder / conditioning)
    return folder


@pytest.fixture
def student(originals, tmp_path):
    return shutil.copytree(originals / "both", tmp_path / "student")


@pytest.fixture
def without_drawing(monkeypatch):
    """Samples are of one compilation each: only some tests draw them."""
    monkeypatch.setattr(published, "draw_samples", lambda *_: iter(()))


def edit_json(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v != "remove"}))


def edit_unet(path, edit):
    arrays = weights.load_arrays(path / UNET)
    edit(arrays)
    weights.save_arrays(path / UNET, arrays)


def as_published_slam(path):
    """alimama-creative's: a plain pipeline, still with the teacher's scheduler."""
    shutil.copytree(path.parent / "scheduler_of_teacher", path / "scheduler", dirs_exist_ok=True)
    edit_json(path / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    edit_json(
        path / "model_index.json",
        requires_safety_checker=True,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )


def as_published_lcm(path):
    """SimianLuo/LCM_Dreamshaper_v7's: another class of pipeline, older scheduler settings."""
    edit_json(path / "model_index.json", _class_name="LatentConsistencyModelPipeline")
    edit_json(path / "scheduler" / "scheduler_config.json", timestep_scaling="remove")
    edit_json(path / "unet" / "config.json", time_cond_proj_dim=256, encoder_hid_dim=None)


@pytest.mark.parametrize("layout", [as_published_slam, as_published_lcm])
def test_published_layouts(originals, student, capsys, layout):
    for name in ("flax", "README.md", "slam.json"):
        path = student / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(originals / "teacher" / "scheduler", student.parent / "scheduler_of_teacher")
    layout(student)
    sheet = student.parent / "sheet.png"
    statuses, facts, code = run(capsys, student, "--out", sheet)
    assert set(statuses.values()) == {"ok"} and code == 0
    assert {"samples, 1", "samples, 2", "samples, 4", "prediction", "scheduler"} <= set(statuses)
    assert float(facts["prediction"].split()[-1]) < 1e-4
    is_slam = layout is as_published_slam
    assert ("PNDMScheduler, epsilon, the teacher's" in facts["scheduler"]) == is_slam
    with Image.open(sheet) as picture:
        assert picture.width > 2 * 64 and picture.height > 3 * 64
        assert np.asarray(picture).std() > 10


def test_a_unet_alone(originals, capsys):
    statuses, facts, code = run(capsys, originals / "both" / "unet")
    assert code == 0 and statuses.pop("samples") == "skipped"
    assert set(statuses.values()) == {"ok"} and "prediction" in statuses
    assert "scheduler" not in statuses and facts["unet dtypes"].endswith("of float32")


@pytest.mark.parametrize("where", ["snr", "snr/unet"])
def test_a_student_that_is_told_gamma_by_the_time_alone(originals, capsys, without_drawing, where):
    statuses, facts, code = run(capsys, originals / where)
    assert code == 0 and "FAIL" not in statuses.values()
    assert "'snr'" in facts["gamma input"]


def test_a_half_precision_variant(student, capsys, without_drawing):
    for component in ("unet", "vae", "text_encoder"):
        (file,) = (student / component).glob("*.safetensors")
        arrays = {k: a.astype(np.float16) for k, a in weights.load_arrays(file).items()}
        weights.save_arrays(file.with_suffix(".fp16.safetensors"), arrays)
        file.unlink()
    statuses, facts, code = run(capsys, student, "--variant", "fp16")
    assert code == 0 and facts["unet dtypes"].endswith("of float16")
    statuses, facts, code = run(capsys, student)
    assert statuses["unet weights"] == "FAIL" and "fp16" in facts["unet weights"]


def test_without_torch(originals, capsys, monkeypatch, without_drawing):
    monkeypatch.setattr(stock_pipeline, "missing_libraries", lambda: ["torch", "diffusers"])
    statuses, facts, code = run(capsys, originals / "both")
    assert (statuses["prediction"], facts["prediction"]) == ("skipped", "no torch and no diffusers")
    assert code == 0


def poison(value, key):
    def edit(path):
        edit_unet(path, lambda arrays: arrays[key].reshape(-1).__setitem__(7, value))

    return edit


def truncate(path):
    content = (path / UNET).read_bytes()
    (path / UNET).write_bytes(content[: len(content) // 2])


def scheduler(**changes):
    return lambda path: edit_json(path / "scheduler" / "scheduler_config.json", **changes)


def unet_config(**changes):
    return lambda path: edit_json(path / "unet" / "config.json", **changes)


def without_gamma(path):
    unet_config(time_cond_proj_dim=None)(path)
    edit_unet(path, lambda arrays: arrays.pop(COND))


def break_vae(path):
    file = path / "vae" / "diffusion_pytorch_model.safetensors"
    arrays = weights.load_arrays(file)
    arrays["decoder.conv_out.bias"][0] = np.nan
    weights.save_arrays(file, arrays)


COND = "time_embedding.cond_proj.weight"
SHAPE = (np.zeros((16, 3, 3, 3), np.float32), "has shape (16, 3, 3, 3), expected (16, 4, 3, 3)")
# What is done to the folder, the check that fails, and what it says.
BROKEN = {
    "NaN": (poison(np.nan, "conv_out.weight"), "unet finite", "first conv_out.weight"),
    "infinity": (poison(np.inf, "conv_in.weight"), "unet finite", "first conv_in.weight"),
    "missing key": (
        lambda p: edit_unet(p, lambda arrays: arrays.pop("conv_in.bias")),
        "unet keys",
        "1 missing (conv_in.bias)",
    ),
    "extra key": (
        lambda p: edit_unet(p, lambda arrays: arrays.update(ema=np.zeros(3, np.float32))),
        "unet keys",
        "1 not expected (ema)",
    ),
    "wrong shape": (
        lambda p: edit_unet(p, lambda arrays: arrays.update({"conv_in.weight": SHAPE[0]})),
        "unet shapes",
        SHAPE[1],
    ),
    "zero cond_proj": (
        lambda p: edit_unet(p, lambda arrays: arrays[COND].fill(0)),
        "gamma weights",
        "never trained",
    ),
    "no cond_proj": (lambda p: edit_unet(p, lambda a: a.pop(COND)), "unet keys", COND),
    "no gamma input": (without_gamma, "gamma input", "time_cond_proj_dim = None, expected 256"),
    "truncated": (truncate, "unet weights", "truncated"),
    "no file": (lambda p: (p / UNET).unlink(), "unet weights", "missing"),
    "no config": (lambda p: (p / "unet/config.json").unlink(), "unet config", "cannot be read"),
    "config of nonsense": (unet_config(norm_num_groups=0), "unet config", "unet/config.json"),
    "config without channels": (unet_config(block_out_channels=None), "unet config", "config.json"),
    "other config": (unet_config(act_fn="relu"), "unet config", "act_fn"),
    "betas": (scheduler(beta_end=0.02), "scheduler", "beta_end = 0.02, expected 0.012"),
    "default betas": (scheduler(beta_schedule="remove"), "scheduler", "beta_schedule = None"),
    "prediction type": (scheduler(prediction_type="flow"), "scheduler", "prediction_type = 'flow'"),
    "teacher's scheduler": (
        scheduler(_class_name="PNDMScheduler"),
        "scheduler",
        "_class_name = 'PNDMScheduler', expected 'LCMScheduler'",
    ),
    "original steps": (
        scheduler(original_inference_steps=30),
        "scheduler",
        "original_inference_steps = 30, expected a divisor of 1000",
    ),
    "original steps in words": (
        scheduler(original_inference_steps="fifty"),
        "scheduler",
        "original_inference_steps = 'fifty'",
    ),
    "timestep scaling": (scheduler(timestep_scaling=1), "scheduler", "timestep_scaling = 1"),
    "clipping": (scheduler(clip_sample=True), "scheduler", "clip_sample = True"),
    "scheduler that is no JSON": (
        lambda p: (p / "scheduler/scheduler_config.json").write_text("{"),
        "scheduler",
        "scheduler_config.json: damaged",
    ),
    "VAE": (break_vae, "other weights", "NaN or infinity in decoder.conv_out.bias"),
    "tokenizer": (
        lambda p: (p / "tokenizer/vocab.json").unlink(),
        "other weights",
        "vocab.json: missing",
    ),
    "pipeline": (
        lambda p: edit_json(p / "model_index.json", _class_name="FluxPipeline"),
        "folder",
        "FluxPipeline",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_fails(student, capsys, without_drawing, case):
    change, name, text = BROKEN[case]
    change(student)
    statuses, facts, code = run(capsys, student)
    assert statuses[name] == "FAIL" and text in facts[name]
    assert isinstance(code, str) and "failed" in code
    if "pipeline" not in case:
        assert statuses["samples"] == "skipped"


def test_a_prediction_unlike_torchs_fails(originals, capsys, monkeypatch, without_drawing):
    embed = published_kinds.gamma_embedding

    def swapped(gamma, dim):
        """cos and sin the other way around, for torch only: its input is made here."""
        return np.roll(embed(gamma, dim), dim // 2, axis=1)

    output = stock_networks.unet_output

    def other_input(unet, inputs):
        gamma = np.float32([0.35, 1])
        return output(unet, {**inputs, "timestep_cond": np.array(swapped(gamma, 256))})

    monkeypatch.setattr(stock_networks, "unet_output", other_input)
    statuses, facts, code = run(capsys, originals / "both" / "unet")
    assert statuses["prediction"] == "FAIL" and code


def test_pictures_of_one_colour_fail(student, capsys):
    def zero(arrays):
        arrays["decoder.conv_out.weight"].fill(0)

    file = student / "vae" / "diffusion_pytorch_model.safetensors"
    arrays = weights.load_arrays(file)
    zero(arrays)
    weights.save_arrays(file, arrays)
    statuses, _, code = run(capsys, student)
    assert statuses["samples, 1"] == statuses["samples, 4"] == "FAIL" and code


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere"], "no such folder"),
        (["{student}", "--out", "sheet.jpg"], "ends in .png"),
        (["{student}", "--revision", "main"], "has no revision"),
    ],
)
def test_refused_command_lines(student, capsys, arguments, text):
    statuses, _, code = run(capsys, *(a.format(student=student) for a in arguments))
    assert statuses == {} and code.startswith("error: ") and text in code and "\n" not in code


def test_a_student_that_diffusers_has_no_pipeline_for_is_refused_in_a_line(tmp_path, capsys):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text('{"family": "digits"}')
    statuses, _, code = run(capsys, tmp_path)
    assert statuses == {} and "\n" not in code
    assert code.startswith(f"error: {tmp_path}: a model of digits, for which diffusers has no")
    assert "slam-jax evaluate measures it" in code
