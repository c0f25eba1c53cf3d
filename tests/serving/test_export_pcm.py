"""Exports of a PCM student: other steps than LCM's, and another scheduler in the stock pipeline."""

import json
import shutil

import numpy as np
import pytest
import tiny_students
from diffusers import StableDiffusionPipeline, TCDScheduler

from slam_jax.base.errors import InputError
from slam_jax.commands import check
from slam_jax.config.options import Config, Teacher
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.method.pcm import Pcm
from slam_jax.recipes.student import as_model, load
from slam_jax.serving import published, stock_pipeline

METHOD = Pcm(phases=4, num_ddim_timesteps=50, w=6.5)


@pytest.fixture(scope="module")
def made(teachers):
    return tiny_students.make(teachers["sd15"], method=METHOD)


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """A finished export, not to be changed."""
    out = tmp_path_factory.mktemp("pcm") / "sd15"
    tiny_students.export(made, out)
    return out


@pytest.mark.parametrize(
    ("family", "steps"),
    [
        ("sd15", stock_pipeline.STEPS),
        pytest.param("zero_snr", (1, 4), marks=pytest.mark.nightly),
        pytest.param("sdxl", (1, 4), marks=pytest.mark.nightly),
    ],
)
def test_the_stock_pipeline_draws_our_pictures(teachers, tmp_path, family, steps):
    out, made = tmp_path / "student", tiny_students.make(teachers[family], method=METHOD)
    tiny_students.export(made, out)
    model = as_model(made[0], Config(method=METHOD), made[1])
    images = stock_pipeline.compare(model, out, stock_pipeline.PROMPTS, steps)
    assert stock_pipeline.STEPS == (1, 2, 4, 8) and tuple(images) == steps
    for ours, stock in images.values():
        # Promised are 2 of 255. Only rounding is let through, and our alpha of 2^-12 where
        # diffusers has 0.
        assert np.abs(ours - stock).max() * 127.5 <= (0.2 if family == "zero_snr" else 0.02)
        assert np.all(ours.std(axis=(1, 2, 3)) > 0.05)
    for fewer, more in zip(steps, steps[1:], strict=False):
        assert np.abs(images[fewer][0] - images[more][0]).max() > 0.05


def test_what_is_in_the_folder(made, exported):
    pipeline = StableDiffusionPipeline.from_pretrained(exported)
    assert type(pipeline.scheduler) is TCDScheduler
    assert pipeline.scheduler.config.original_inference_steps == 50
    assert pipeline.unet.config.time_cond_proj_dim is None
    record, card = json.loads((exported / "slam.json").read_text()), exported / "README.md"
    assert record["method"]["phases"] == 4 and "num_inference_steps=4" in record["usage"]
    text = card.read_text()
    assert "with PCM (phased consistency, arXiv 2405.18407)" in text and "SLAM" not in text
    assert "num_inference_steps=4" in text and "w = 6.5" in text
    assert load(str(exported)).method == METHOD


@pytest.mark.parametrize("told_by", ["slam.json", "the scheduler"])
def test_it_is_a_student_and_no_teacher(teachers, exported, tmp_path, told_by):
    folder = shutil.copytree(exported, tmp_path / "student")
    if told_by == "slam.json":  # and not by its scheduler, which a user may have changed
        shutil.rmtree(folder / "scheduler")
        shutil.copytree(teachers["sd15"] / "scheduler", folder / "scheduler")
    else:
        (folder / "slam.json").unlink()
    loaded = load(str(folder))
    assert loaded.is_student and isinstance(loaded.method, Pcm)
    schedule = loaded.pipeline.schedule
    for steps in stock_pipeline.STEPS:
        ours, theirs = (m.timesteps(steps, schedule) for m in (METHOD, loaded.method))
        assert ours.tolist() == theirs.tolist()
    with pytest.raises(InputError, match=r"a few-step student \(slam\.json,.*TCDScheduler\)"):
        StableDiffusion.open(Teacher(path=str(folder)), folder)


def test_it_is_checked(exported, tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(published, "draw_samples", lambda *a: drawn.append(a[3]) or iter(()))
    check.main([str(exported)])
    lines = capsys.readouterr().out.splitlines()
    assert drawn == [METHOD] and all(line.startswith("ok") for line in lines)
    assert any("distilled with PCM" in line for line in lines)
    assert any("TCDScheduler, epsilon, original_inference_steps 50 of 1000" in x for x in lines)
    folder = shutil.copytree(exported, tmp_path / "student")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("TCDScheduler", "LCMScheduler"))
    with pytest.raises(SystemExit):
        check.main([str(folder)])
    out = capsys.readouterr().out
    assert "_class_name = 'LCMScheduler', expected 'TCDScheduler'" in out
