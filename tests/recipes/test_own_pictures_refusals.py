"""What a teacher's own pictures are refused for, in one line and before anything is written."""

import json

import numpy as np
import pytest
from own_pictures_runs import options
from tiny_runs import launch

from slam_jax.commands import train as main
from slam_jax.formats import safetensors as weights


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n")
    return path


@pytest.mark.slow
def test_a_picture_that_is_not_finite_is_refused_and_not_kept(changeable, prompts, tmp_path):
    path = changeable / "unet/diffusion_pytorch_model.safetensors"
    arrays = weights.load_arrays(path)
    arrays["conv_out.bias"] = np.full_like(arrays["conv_out.bias"], np.nan)
    weights.save_arrays(path, arrays)
    with pytest.raises(SystemExit, match="the teacher's picture 0 is not finite"):
        launch(changeable, tmp_path / "run", *options(prompts))
    assert not list((tmp_path / "run").rglob("shard-*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config.data.source=teacher:{tmp}/empty.txt"], "config.data: empty.txt: no prompts in"),
        (["--config.data.source=teacher:/nowhere.txt"], "config.data: /nowhere.txt: no such file"),
        (["--config.data.source=teacher:"], "config.data: teacher: names no prompts; add a text"),
        (["--config.data.teacher_count=0"], "config.data.teacher_count = 0, expected a number at"),
        (
            ["--config.data.teacher_steps=1001"],
            "config.data.teacher_steps = 1001, expected a number at",
        ),
        (["--config.data.teacher_w=-1.0"], "config.data.teacher_w = -1.0, expected a number at"),
        (["--config.data.flip=True"], "flip = True means nothing to it; leave it at False"),
        (["--config.data.crop=center"], "crop = 'center' means nothing to it"),
        (["--config.data.source=photographs"], "photographs: teacher_count = 10 means nothing to"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    teachers, prompts, tmp_path, changes, message
):
    (tmp_path / "empty.txt").write_text("\n \n")
    changes = [change.format(tmp=tmp_path) for change in changes]
    with pytest.raises(SystemExit) as exit_:
        launch(teachers["sd15"], tmp_path / "run", *options(prompts), *changes)
    assert message in str(exit_.value) and "\n" not in str(exit_.value)
    assert not (tmp_path / "run").exists()


def test_a_student_draws_no_pictures_to_be_distilled_on(changeable, prompts, tmp_path):
    path = changeable / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_class_name": "LCMScheduler"}))
    with pytest.raises(SystemExit, match=r"config.teacher.path = .*: a few-step student"):
        launch(changeable, tmp_path / "run", *options(prompts))
    assert not (tmp_path / "run").exists()


def test_the_digits_refuse_it(prompts, tmp_path):
    flag = ["--config", "digits", f"--config.data.source=teacher:{prompts}"]
    with pytest.raises(SystemExit, match="expected 'digits' for this teacher"):
        main.main([*flag, "--workdir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
