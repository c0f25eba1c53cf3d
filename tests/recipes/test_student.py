"""A student of a run is drawn with as the run's config says; and what is no model is refused."""

import dataclasses

import jax
import pytest
from small_digits import CONFIG, PIPELINE, UNET

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import write_json
from slam_jax.config.options import Teacher
from slam_jax.families.digits import Digits
from slam_jax.families.pipeline import student_config, student_params
from slam_jax.formats.flax_folder import SavedModel, save_model
from slam_jax.models.execution import Execution
from slam_jax.recipes.distil import info_of
from slam_jax.recipes.open_teacher import open_teacher
from slam_jax.recipes.student import as_model, find_teacher, load


@pytest.fixture
def run(tmp_path):
    """(its student, its config, its teacher)."""
    config = dataclasses.replace(CONFIG, execution=Execution(attention="xla"))
    params = jax.device_get(PIPELINE.init(UNET, jax.random.key(0)))
    teacher = SavedModel("digits", UNET.to_dict(), params, PIPELINE.scheduler, {})
    save_model(tmp_path / "teacher", teacher)
    method = config.method
    return (
        SavedModel(
            "digits",
            student_config(PIPELINE, method).to_dict(),
            student_params(PIPELINE, method, params),
            PIPELINE.scheduler,
            info_of(config),
        ),
        config,
        open_teacher(config, tmp_path),
    )


def test_it_is_computed_as_the_run_computed_it(run):
    student, config, family = run
    assert isinstance(family, Digits) and config.execution != Execution()
    model = as_model(student, config, family)
    assert model.pipeline.execution == family.pipeline.execution == config.execution
    assert model.pipeline.network == student_config(PIPELINE, config.method)
    assert (model.method, model.info, model.frozen) == (config.method, info_of(config), {})


def test_a_model_folder_is_loaded_in_a_dtype_and_anything_else_is_refused(run, tmp_path):
    student, config, family = run
    family.export(student, tmp_path / "run" / "export")
    for path in ("run", "run/export"):  # a finished run is its export
        model = load(str(tmp_path / path))
        assert model.method == config.method
        jax.tree.map(lambda a, b: (a == b).all() or pytest.fail(), model.params, student.params)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"empty: no model of a family there is \(stable_diffusion, sd3, d"
    ):
        load(str(tmp_path / "empty"))


def test_a_run_without_a_student_says_what_there_is_and_what_to_do(run, tmp_path):
    student, _, family = run
    workdir = tmp_path / "unfinished"

    def said(path=workdir):
        with pytest.raises(InputError) as refused:
            load(str(path))
        return str(refused.value).removeprefix(f"{path}: ")

    go_on = "go on with it (the same command with --resume)"
    (workdir / "teacher" / "checkpoints").mkdir(parents=True)
    write_json(workdir / "run.json", {})
    assert said() == f"this run has no student yet; {go_on}"
    write_json(workdir / "teacher" / "options.json", {})
    assert said() == f"this run has no student yet: its teacher is trained first; {go_on}"
    assert said(workdir / "teacher") == f"this training has not finished; {go_on}"
    save_model(workdir / "teacher", student)
    theirs = f"or take its teacher: {workdir / 'teacher'}"
    assert said() == f"this run has no student yet; {go_on}, {theirs}"
    (workdir / "checkpoints" / "2").mkdir(parents=True)
    assert said() == f"this run has not finished; {go_on}, or use slam-jax export, {theirs}"


def test_a_family_that_does_not_exist_is_refused_with_those_there_are(tmp_path):
    teacher = dataclasses.replace(CONFIG.teacher, family="flux")
    with pytest.raises(InputError, match="config.teacher.family = 'flux', expected one of stable_"):
        open_teacher(dataclasses.replace(CONFIG, teacher=teacher), tmp_path)


def test_a_grid_that_does_not_divide_the_teachers_schedule_is_refused(tmp_path):
    method = dataclasses.replace(CONFIG.method, num_ddim_timesteps=30)
    with pytest.raises(InputError, match="^config.method.num_ddim_timesteps = 30, expected a divi"):
        open_teacher(dataclasses.replace(CONFIG, method=method), tmp_path)


def test_a_teacher_that_is_not_found_from_here_is_asked_for(run, tmp_path, monkeypatch):
    """The path in the config is relative to the folder where the run was started."""
    _, config, _ = run
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").rename("moved")
    for teacher in (
        Teacher(family="digits", path="kept/teacher", network=UNET.to_dict()),
        Teacher(family="stable_diffusion", path="kept/teacher"),
    ):
        write_json(tmp_path / "teacher.json", {"path": "kept/teacher"})
        changed = dataclasses.replace(config, teacher=teacher)
        with pytest.raises(InputError, match=r"kept/teacher.*say where its teacher is: .*--teach"):
            find_teacher(tmp_path, changed)
    digits = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, path="moved"))
    assert isinstance(find_teacher(tmp_path, digits), Digits)
