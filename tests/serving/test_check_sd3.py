"""slam-jax check of students of Stable Diffusion 3, of which one thing or another is broken."""

import json
import shutil

import numpy as np
import pytest
import tiny_students
from check_run import run

from slam_jax.families.sd3 import StableDiffusion3
from slam_jax.formats import safetensors as weights
from slam_jax.method.slam import Slam
from slam_jax.serving import published, stock_networks
from slam_jax.serving.published_denoiser import Result

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original(teachers, tmp_path_factory):
    """An export; not to be changed."""
    method = Slam(sigma="linear", conditioning="snr")
    made = tiny_students.make(teachers["sd35"], method=method, kind=StableDiffusion3)
    out = tmp_path_factory.mktemp("check") / "student"
    tiny_students.export(made, out)
    return out


@pytest.fixture
def without_drawing(monkeypatch):
    monkeypatch.setattr(published, "draw_samples", lambda *_: iter(()))


@pytest.mark.slow  # draws
def test_an_export_is_whole(original, tmp_path, capsys):
    statuses, facts, code = run(capsys, original, "--out", tmp_path / "sheet.png")
    assert set(statuses.values()) == {"ok"} and code == 0
    assert float(facts["prediction"].split()[-1]) < 1e-5
    assert {"samples, 1", "samples, 2", "samples, 4", "transformer keys", "sigmas"} <= {*statuses}
    assert facts["scheduler"] == "FlowMatchLCMScheduler, shift 3"
    assert "text_encoder_3" in facts["other weights"] and (tmp_path / "sheet.png").exists()


def test_a_transformer_alone(original, capsys):
    statuses, facts, code = run(capsys, original / "transformer")
    assert code == 0 and facts["folder"].startswith("a transformer alone")
    assert statuses.pop("samples") == "skipped" and set(statuses.values()) == {"ok"}


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path, edit):
    arrays = weights.load_arrays(path)
    edit(arrays)
    weights.save_arrays(path, arrays)


PREDICTED = Result("ok", "prediction", "as torch's")
BIAS = "transformer_blocks.1.attn.to_q.bias"
BROKEN = {
    "NaN": (
        lambda p: edit_weights(p / WEIGHTS, lambda arrays: arrays[BIAS].fill(np.nan)),
        "transformer finite",
        f"first {BIAS}",
    ),
    "missing key": (
        lambda p: edit_weights(p / WEIGHTS, lambda arrays: arrays.pop(BIAS)),
        "transformer keys",
        f"1 missing ({BIAS})",
    ),
    "config": (
        lambda p: edit_json(p / "transformer/config.json", guidance_embeds=True),
        "transformer config",
        "guidance_embeds = True: it was distilled to be told its guidance",
    ),
    "scheduler": (
        lambda p: edit_json(
            p / "scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"
        ),
        "scheduler",
        "'FlowMatchEulerDiscreteScheduler', expected 'FlowMatchLCMScheduler'",
    ),
    "shift": (
        lambda p: edit_json(p / "scheduler/scheduler_config.json", shift_terminal=0.1),
        "scheduler",
        "shift_terminal: 0.1, expected none",
    ),
    "sigmas": (
        lambda p: edit_json(p / "slam.json", sigmas={"2": [1.0, 0.4]}),
        "sigmas",
        "of 2 steps: [1.0, 0.4], expected [1.0, 0.5]",
    ),
    "no sigmas": (lambda p: edit_json(p / "slam.json", sigmas={}), "sigmas", "lists none"),
    "null": (lambda p: edit_json(p / "slam.json", sigmas=None), "sigmas", "lists none"),
    "a list": (lambda p: edit_json(p / "slam.json", sigmas=[[1, [1.0]]]), "sigmas", "lists none"),
    "steps in words": (
        lambda p: edit_json(p / "slam.json", sigmas={"two": [1.0, 0.5]}),
        "sigmas",
        "of 'two' steps: invalid literal",
    ),
    "too many steps": (
        lambda p: edit_json(p / "slam.json", sigmas={"9999": []}),
        "sigmas",
        "of '9999' steps: ",
    ),
    "T5": (
        lambda p: edit_weights(
            p / "text_encoder_3/model.safetensors",
            lambda arrays: arrays["encoder.final_layer_norm.weight"].fill(np.inf),
        ),
        "other weights",
        "text_encoder_3: NaN or infinity in encoder.final_layer_norm",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_fails(original, tmp_path, capsys, monkeypatch, without_drawing, case):
    monkeypatch.setattr(published, "compare_with_torch", lambda *_: PREDICTED)
    change, name, text = BROKEN[case]
    student = shutil.copytree(original, tmp_path / "student")
    change(student)
    statuses, facts, code = run(capsys, student)
    assert statuses[name] == "FAIL" and text in facts[name] and code


def test_a_prediction_unlike_torchs_fails(original, capsys, monkeypatch):
    output = stock_networks.transformer_output

    def earlier(transformer, inputs):
        return output(transformer, {**inputs, "timesteps": inputs["timesteps"] - 1})

    monkeypatch.setattr(stock_networks, "transformer_output", earlier)
    statuses, _, code = run(capsys, original / "transformer")
    assert statuses["prediction"] == "FAIL" and code


def test_a_transformer_of_another_kind_is_named(original, tmp_path, capsys):
    other = shutil.copytree(original / "transformer", tmp_path / "other")
    edit_json(other / "config.json", _class_name="FluxTransformer2DModel")
    statuses, facts, code = run(capsys, other)
    assert statuses == {"folder": "FAIL"} and code
    assert "is 'FluxTransformer2DModel' (its transformer is of another kind" in facts["folder"]
