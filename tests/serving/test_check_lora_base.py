"""The check of LoRAs on a base: what the base predicts with them is what diffusers and peft do."""

import lora_layouts
import numpy as np
import pytest
import tiny_loras
import tiny_students
from check_run import run
from diffusers import DiffusionPipeline
from lora_layouts import ALPHA, RANK
from PIL import Image

from slam_jax.formats.safetensors import load_arrays, save_arrays
from slam_jax.serving import lora_on_base, published, stock_networks, stock_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def styles(teachers, tmp_path_factory):
    """(family, layout) -> a file."""
    files = {}
    with tiny_loras.any_peft():
        for family in ("sd15", "sdxl"):
            made = tiny_loras.style(
                DiffusionPipeline.from_pretrained(teachers[family]), RANK, ALPHA
            )
            for name in ("kohya", "diffusers", "stability", "peft", "2023"):
                path = tmp_path_factory.mktemp("styles") / "style.safetensors"
                getattr(lora_layouts, f"of_{name}")(*made, path)
                (files[family, name],) = path.parent.glob("*.safetensors")
    return files


@pytest.fixture
def without_drawing(monkeypatch):
    """Samples are of one compilation each: only some tests draw them."""
    monkeypatch.setattr(lora_on_base, "draw_samples", lambda *_: iter(()))


@pytest.fixture
def steps(teachers, tmp_path):
    """A LoRA that makes its teacher a student."""
    tiny_students.export(tiny_loras.make(teachers["sd15"]), tmp_path / "steps")
    return tmp_path / "steps"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "layout", "scale"),
    [
        ("sd15", "kohya", "5, beside the pairs"),
        ("sd15", "diffusers", "5, in the header"),
        ("sd15", "peft", "5, in adapter_config.json"),
        ("sd15", "2023", "3, nowhere"),
        ("sdxl", "kohya", "5, beside the pairs"),
        ("sdxl", "stability", "5, beside the pairs"),
    ],
)
def test_predictions_are_those_of_peft(
    teachers, styles, capsys, without_drawing, family, layout, scale
):
    path = styles[family, layout]
    statuses, facts, code = run(capsys, teachers[family], "--lora", f"{path}:0.7")
    assert code == 0 and set(statuses.values()) == {"ok"}
    assert facts["lora"] == f"{path} at 0.7" and facts["lora base"].startswith("for this model: ")
    assert facts["lora alpha"].startswith(scale)
    assert float(facts["prediction"].split()[-1]) < 1e-4
    assert facts["drawn by"] == "a teacher, guidance 7.5"
    assert ("layers of text_encoder_2" in facts["lora targets"]) == (
        (family, layout) == ("sdxl", "kohya")
    )


@pytest.mark.slow
def test_few_steps_and_a_style_are_drawn(teachers, styles, steps, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "STEPS", (1, 2))
    loras = ["--lora", steps, "--lora", f"{styles['sd15', 'diffusers']}:0.7"]
    statuses, facts, code = run(capsys, teachers["sd15"], *loras, "--out", tmp_path / "sheet.png")
    assert code == 0 and set(statuses.values()) == {"ok"}
    assert float(facts["prediction"].split()[-1]) < 1e-4
    assert facts["drawn by"].startswith("SLAM (")
    assert {"samples, 1", "samples, 2"} <= statuses.keys()
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > 2 * 64 and np.asarray(picture).std() > 10


@pytest.mark.slow
def test_a_teacher_draws_with_a_style(teachers, styles, capsys, monkeypatch):
    monkeypatch.setattr(published, "STEPS", (2,))
    monkeypatch.setattr(stock_pipeline, "missing_libraries", lambda *names: list(names))
    path = styles["sd15", "kohya"]
    statuses, facts, code = run(capsys, teachers["sd15"], "--lora", path)
    assert code == 0 and statuses["samples, 2"] == "ok"
    assert (statuses["prediction"], facts["prediction"]) == ("skipped", "no peft")


def test_few_steps_without_a_record_are_drawn_as_the_command_line_says(
    teachers, styles, capsys, without_drawing
):
    path = styles["sd15", "kohya"]
    _, facts, code = run(capsys, teachers["sd15"], "--lora", path, "--method", "lcm")
    assert code == 0 and facts["drawn by"].startswith("LCM (")


def test_a_run_means_its_export(teachers, steps, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    steps.rename(tmp_path / "run" / "export")
    _, facts, _ = run(capsys, tmp_path / "run")
    assert facts["lora file"].startswith("pytorch_lora_weights.safetensors")


def test_a_lora_that_torch_has_not_fails(teachers, styles, capsys, monkeypatch, without_drawing):
    add = stock_networks.add_loras
    halved = lambda unet, loras: add(unet, [(path, weight / 2) for path, weight in loras])  # noqa: E731
    monkeypatch.setattr(stock_networks, "add_loras", halved)
    statuses, _, code = run(capsys, teachers["sd15"], "--lora", styles["sd15", "kohya"])
    assert statuses["prediction"] == "FAIL" and code


@pytest.mark.parametrize(
    ("family", "layout", "facts_of", "text"),
    [
        ("sdxl", "kohya", "lora base", "not for this model: "),
        ("sdxl", "kohya", "lora keys", "are of no layer"),
        ("sdxl", "diffusers", "lora shapes", "this model's is"),
    ],
)
def test_a_lora_for_another_base_fails(teachers, styles, capsys, family, layout, facts_of, text):
    path = styles[family, layout]
    statuses, facts, code = run(capsys, teachers["sd15"], "--lora", path)
    assert statuses[facts_of] == "FAIL" and text in facts[facts_of]
    assert statuses["prediction"] == statuses["samples"] == "skipped" and code
    assert "merged" not in statuses


def test_keys_that_are_passed_over(teachers, styles, tmp_path, capsys, without_drawing):
    arrays = load_arrays(styles["sd15", "kohya"])
    for side, shape in (("down", (3, 4)), ("up", (4, 3))):
        arrays[f"lora_unet_down_blocks_9_attentions_0_proj_in.lora_{side}.weight"] = np.ones(
            shape, np.float32
        )
    path = tmp_path / "style.safetensors"
    save_arrays(path, arrays)
    statuses, facts, code = run(capsys, teachers["sd15"], "--lora", path)
    assert statuses["lora keys"] == "FAIL" and "2 are of no layer" in facts["lora keys"] and code
    assert statuses["prediction"] == "skipped"
    statuses, facts, code = run(capsys, teachers["sd15"], "--lora", path, "--allow-unused")
    assert code == 0 and facts["lora keys"].endswith("passed over")


def test_few_steps_of_a_student_fail(teachers, steps, tmp_path, capsys):
    student = tmp_path / "student"
    tiny_students.export(tiny_students.make(teachers["sd15"], "snr"), student)
    statuses, facts, code = run(capsys, student, "--lora", steps)
    assert statuses["merged"] == "FAIL" and "the model is a student already" in facts["merged"]
    assert "prediction" not in statuses and code


@pytest.mark.parametrize(
    ("file", "name", "text"),
    [
        (UNET, "unet finite", "first conv_in.bias"),
        ("vae/diffusion_pytorch_model.safetensors", "base", "NaN or infinity in"),
    ],
)
def test_a_broken_base_fails(changeable, styles, capsys, file, name, text):
    arrays = load_arrays(changeable / file)
    key = "conv_in.bias" if file == UNET else "decoder.conv_in.bias"
    arrays[key][0] = np.nan
    save_arrays(changeable / file, arrays)
    statuses, facts, code = run(capsys, changeable, "--lora", styles["sd15", "kohya"])
    assert statuses[name] == "FAIL" and text in facts[name] and statuses["lora"] == "skipped"
    assert code and "lora keys" not in statuses


def test_no_base_fails(styles, tmp_path, capsys):
    statuses, facts, code = run(capsys, tmp_path, "--lora", styles["sd15", "kohya"])
    assert statuses["base"] == "FAIL" and "model_index.json" in facts["base"] and code
