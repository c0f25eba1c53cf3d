"""The digits job end to end, small; what it refuses; and what it says."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from digits_runs import launch
from helpers import interrupt_in_step
from PIL import Image

from slam_jax.base.errors import InputError
from slam_jax.commands import sample
from slam_jax.config.options import Training, default_config
from slam_jax.config.validate import freeze
from slam_jax.formats.flax_folder import load_model

pytestmark = pytest.mark.slow  # whole runs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(made_once):
    return made_once("finished_digits", launch)


def test_run_leaves_pictures_report_export_and_metrics(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "teacher", "checkpoints", "metrics.jsonl", "tensorboard"} <= names
    assert {"samples", "summary.json", "summary.md", "export", "report.html"} <= names
    ladders = {path.name for path in (finished / "samples").iterdir()}
    assert ladders == {
        *("ladder.png", "step_000003.png", "step_000006.png"),
        *("ladder", "step_000003", "step_000006"),
    }
    summary = json.loads((finished / "summary.json").read_text())
    rows = [(row["model"], row["steps"]) for row in summary["results"]]
    assert rows == [("teacher", 3), ("student", 1), ("student", 2)]
    assert all(np.isfinite(v) for row in summary["results"] for v in list(row.values())[1:])
    assert summary["results"][0]["rmse_to_teacher"] == 0
    assert summary["method"]["conditioning"] == "snr" and summary["peak_memory_gb"] > 0
    assert (finished / "summary.md").read_text().count("| student |") == 2
    metrics = [json.loads(row) for row in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [2, 3, 4, 6]
    assert {"loss", "grad_norm", "samples_per_second", "loss_gamma3"} <= set(metrics[0])
    assert [row["step"] for row in metrics if "rmse_to_teacher_2" in row] == [3, 6]
    for row in summary["results"][1:]:
        # The report measures other samples than the picture.
        measured = metrics[-1][f"rmse_to_teacher_{row['steps']}"]
        assert measured == pytest.approx(row["rmse_to_teacher"], rel=0.5)


def test_exported_student_loads_with_one_call_and_draws(finished, tmp_path):
    student = load_model(finished / "export")
    assert student.info["method"]["w"] == 2.0
    out = tmp_path / "grid.png"
    arguments = ["--model", str(finished), "--steps", "2", "--labels", "0,1,2", "--seed", "3"]
    sample.main([*arguments, "--out", str(out)])
    first = np.asarray(Image.open(out))
    sample.main([*arguments, "--out", str(out)])
    np.testing.assert_array_equal(first, np.asarray(Image.open(out)))
    sample.main([*arguments[:-1], "4", "--out", str(out)])
    assert np.any(first != np.asarray(Image.open(out)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "0,x"], "prompt 'x': this model draws the digits 0 to 9"),
        (["--labels", "11"], "prompt '11'"),
        (["--steps", "0"], "--steps 0"),
        (["--steps", "51"], "--steps: 51 must be between 1 and 50"),
        (["--seed", "5000000000"], "--seed 5000000000"),
        (["--out", "grid.jpg"], "ends in .png"),
        (["--prompt", "a cat"], "prompt 'a cat'"),
        (["--prompt", "3", "--labels", "3"], "--prompt and --labels: expected one of them"),
        (["--guidance", "7.5"], "it would be guided twice"),
        (["--width", "64"], "has no width 64"),
        (["--image", "a.png"], "draws from noise only"),
        (["--strength", "0.5"], "--strength"),
        (["--batch", "0"], "--batch 0"),
        (["--model", "/nowhere"], "/nowhere"),
    ],
)
def test_sample_refuses_bad_input_in_one_line(finished, arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        sample.main(["--model", str(finished), *arguments])
    assert message in str(exit_.value) and "\n" not in str(exit_.value)


def test_finished_teacher_is_not_trained_again(finished, monkeypatch, tmp_path):
    def fail(*_):
        raise AssertionError("the teacher was trained again")

    monkeypatch.setattr("slam_jax.recipes.plain.make_train_step", fail)
    monkeypatch.setattr(
        "slam_jax.recipes.run.distil", lambda *arguments: load_model(finished / "export").params
    )
    launch(tmp_path / "lcm", f"--config.teacher.path={finished / 'teacher'}")
    with pytest.raises(SystemExit, match="made otherwise: config.teacher.dropout"):
        launch(
            tmp_path / "other",
            f"--config.teacher.path={finished / 'teacher'}",
            "--config.teacher.dropout=0.3",
        )
    assert not (tmp_path / "other").exists()
    (finished / "teacher/config.json").rename(tmp_path / "config.json")  # as if unfinished
    with pytest.raises(SystemExit, match="made otherwise: config.teacher.seed"):
        launch(
            tmp_path / "other",
            f"--config.teacher.path={finished / 'teacher'}",
            "--config.teacher.seed=1",
        )
    (tmp_path / "config.json").rename(finished / "teacher/config.json")


def test_ctrl_c_saves_and_resume_ends_in_the_same_bits(finished, tmp_path, monkeypatch, capsys):
    """In the teacher's third step, and when the run goes on in the student's."""
    few = ["--config.training.sample_every=0", "--config.evaluation.samples=10"]
    few += ["--config.evaluation.student_steps=(1,)"]
    for stage, number, resume in (("teacher", 3, []), ("student", 3 + 3, ["--resume"])):
        with monkeypatch.context() as patch:
            interrupt_in_step(patch, number)
            with pytest.raises(SystemExit) as exit_:
                launch(tmp_path / "run", *few, *resume)
        assert exit_.value.code == 130
        said = capsys.readouterr().err
        assert f"stopped at step 3 of 6 ({stage})" in said and "--resume" in said
    launch(tmp_path / "run", *few, "--resume")
    for part in ("teacher", "export"):
        ours, theirs = load_model(tmp_path / "run" / part), load_model(finished / part)
        jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


@pytest.mark.nightly
def test_a_student_that_is_told_gamma_and_a_teacher_that_predicts_v(finished, tmp_path):
    """The paper's conditioning is trained by test_readme, from configs/digits_paper.py."""
    assert "cond_proj" not in load_model(finished / "export").params["time_embedding"]
    changes = ["--config.method.conditioning=both", "--config.teacher.prediction_type=v_prediction"]
    few = ["--config.training.sample_every=0", "--config.evaluation.student_steps=(1,)"]
    launch(tmp_path / "run", *changes, *few)
    student = load_model(tmp_path / "run" / "export")
    assert np.any(student.params["time_embedding"]["cond_proj"]["kernel"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.method.gama=one", "; did you mean gamma?"),
        ("--config.metod.gamma=one", "; did you mean method?"),
        ("--config.method.w=x", "config.method.w"),
        ("--config.method.gamma=1.5", "config.method.gamma = '1.5'"),
        ("--config.method.sigma=two", "config.method.sigma = 'two'"),
        ("--config.method.conditioning=two", "config.method.conditioning = 'two'"),
        ("--config.method.distance=l1", "config.method.distance = 'l1'"),
        ("--config.method.name=dmd", "config.method.name = 'dmd', expected one of slam"),
        ("--config.method.w=-2", "config.method.w = -2"),
        ("--config.method.num_ddim_timesteps=30", "config.method.num_ddim_timesteps"),
        ("--config.method.num_ddim_timesteps=0", "config.method.num_ddim_timesteps"),
        ("--config.method.gammas_per_subpath=0", "config.method.gammas_per_subpath = 0"),
        ("--config.method.gammas_per_subpath=1", "config.method.gammas_per_subpath = 1"),
        ("--config.method.solver_substeps=0", "config.method.solver_substeps = 0"),
        ("--config.evaluation.student_steps=(1,51)", "evaluation.student_steps: steps: 51"),
        (
            "--config.evaluation.teacher_steps=(2000,)",
            "config.evaluation.teacher_steps = (",
        ),
        ("--config.evaluation.student_steps=(1,2.5)", "config.evaluation.student_steps"),
        ("--config.seed=99999999999", "config.seed"),
        ("--config.name=../x", "config.name"),
        ("--config.teacher.dropout=0", "config.teacher.dropout"),
        ("--config.teacher.training.sample_every=5", "config.teacher.training.sample_every"),
        ("--config.teacher.network.attention_head_dim=3", "config.teacher.network = "),
        ("--config.teacher.network.norm_num_groups=0", "config.teacher.network = "),
        ("--config.training.batch_size=12", "config.training.batch_size = 12"),
        ("--config.training.steps=0", "config.training.steps = 0"),
        ("--config.training.ema=1", "config.training.ema = 1"),
        ("--config.training.optimizer.schedule=step", "config.training.optimizer.schedule"),
        ("--config.teacher.network.cross_attention_dim=9", "network.cross_attention_dim = 9"),
        ("--config.teacher.network.norm_num_groups=3", "a UNet that can be built"),
        (
            "--config.teacher.family=flux",
            "family = 'flux', expected one of stable_diffusion, sd3, digits",
        ),
        ("--config.teacher.variant=fp16", "config.teacher.variant = 'fp16'"),
        (
            "--config.mesh.data=3",
            "config.mesh.data = 3, expected the 8 devices divided by fsdp = 1",
        ),
        ("--config.mesh.fsdp=3", "config.mesh.fsdp = 3, expected a divisor of the 8 devices"),
        ("--config.training.accumulation=4", "8 devices times accumulation = 4"),
        ("--config.training.remat=half", "config.training.remat = 'half', expected one of none"),
        ("--config.teacher.training.remat=full", "remat = 'full', expected none: it is for"),
        ("--config.data.source=photographs", "source = 'photographs', expected 'digits'"),
        ("--config.data.min_size=9", "config.data: digits: min_size = 9 means nothing"),
        (
            "--config.evaluation.metrics=('fidelity',)",
            "metrics = 'fidelity', expected one of fd_pixels",
        ),
        ("--config.execution.attention=flash", "config.execution.attention = 'flash', expected"),
        ("--config.training.best_metric=rmse_to_teacher_3", "rmse_to_teacher_1, rmse_to_teacher_2"),
        ("--workdirs=x", "workdirs"),
        ("--config=missing.py", "--config missing.py: no such file; recipes: digits, digits_paper"),
        ("--config=missing", "--config missing: no such recipe, expected digits, digits_paper"),
    ],
)
def test_bad_option_is_refused_in_one_line_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(SystemExit) as exit_:
        launch(tmp_path / "run", change)
    assert message in str(exit_.value) and "\n" not in str(exit_.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("metric", "measured"), [("loss", "log"), ("rmse_to_teacher_4", "sample")])
def test_best_checkpoints_have_to_be_measured(metric, measured):
    best = dict(keep_best=1, best_metric=metric, checkpoint_every=6)
    for every in (4, 12) if measured == "log" else (0, 4, 12):
        with pytest.raises(ValueError, match=f"checkpoint_every = 6, .* {measured}_every"):
            Training(**{f"{measured}_every": every}, **best)
    Training(**{f"{measured}_every": 3}, **best)


def test_one_of_several_processes_does_not_train_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(SystemExit, match="JAX_NUM_PROCESSES is set, and --distributed is not"):
        launch(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_key_of_a_config_file_is_named():
    values = default_config().to_dict()
    values["method"]["gama"] = values["method"].pop("gamma")
    with pytest.raises(InputError, match="config.method.gama: no such option; did you mean gamma"):
        freeze(values)
    values = default_config().to_dict()
    values["training"]["steps"] = "10"
    with pytest.raises(InputError, match="config.training.steps = '10', expected a whole number"):
        freeze(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "add --resume"),
        (["--resume", "--config.method.w=3"], "config.method.w is 3.0 here and 2.0 there"),
    ],
)
def test_workdir_of_another_run_is_refused(finished, change, message):
    with pytest.raises(SystemExit) as exit_:
        launch(finished, *change)
    assert message in str(exit_.value)


def test_options_that_change_no_weights_may_change_when_a_run_goes_on(finished, capsys):
    before = json.loads((finished / "summary.json").read_text())
    launch(finished, "--resume", "--config.evaluation.samples=20", "--config.mesh.data=8")
    assert "| student |" in capsys.readouterr().out
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["results"] != before["results"]
    for name in ("seconds", "peak_memory_gb"):  # of the start that trained, not of this one
        assert summary[name] == before[name]
    assert json.loads((finished / "config.json").read_text())["evaluation"]["samples"] == 20


def test_damaged_record_of_a_workdir_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SystemExit, match=r"config.json: damaged"):
        launch(tmp_path, "--resume")


def test_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SystemExit, match="holds no run"):
        launch(tmp_path)


@pytest.mark.parametrize(
    ("module", "option"), [("slam_jax.main", "--workdir"), ("slam_jax", "sample")]
)
def test_help_explains_the_command(module, option):
    command = [sys.executable, "-m", module, "--help"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert option in said
