"""A method from outside the package: the student learns where its teacher's many steps end, while
a second network with an optimiser of its own learns how far off it is."""

import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import slam_jax
from slam_jax.base.errors import InputError
from slam_jax.base.options import check, option
from slam_jax.commands import export
from slam_jax.method.method import Method, gaussian, sums_by_bin
from slam_jax.method.registry import METHODS
from slam_jax.method.sampler import sample_ddim
from slam_jax.method.solver import guided

pytestmark = pytest.mark.slow  # whole runs

SMALL = {
    "training": {"steps": 4, "batch_size": 16, "sample_every": 0, "log_every": 1},
    "evaluation": {"samples": 50, "teacher_steps": (3,), "student_steps": (1,)},
}


@dataclass(frozen=True)
class EndPoints(Method):
    """x0 of the student at the first timestep is the end of the teacher's way from there."""

    name: str = option("end_points", "of the method", one_of=("end_points",))
    teacher_steps: int = option(3, "of the teacher's way", at_least=1)

    def check(self, schedule):
        most = schedule.num_train_timesteps
        check(self.teacher_steps <= most, "teacher_steps", self.teacher_steps, f"at most {most}")

    def init(self, student):
        return {"student": student, "error": {"log": jnp.zeros(())}}

    def student_of(self, params):
        return params["student"]

    def optimizer(self, tx):
        return optax.partition(
            {"student": tx, "error": optax.sgd(0.5)}, {"student": "student", "error": "error"}
        )

    def loss(self, params, ema, networks, examples, key):
        schedule, latents = networks.schedule, examples.latents
        noise = gaussian(key, examples.index, latents.shape[1:])
        contexts = examples.context, examples.null_context
        predict = guided(networks.teacher, schedule, *contexts, self.w)
        timesteps = schedule.teacher_timesteps(self.teacher_steps)
        ends = jax.lax.stop_gradient(sample_ddim(predict, schedule, noise, timesteps))
        x0 = self._answer(networks.student(params["student"]), schedule, noise, examples.context)
        errors = ((x0 - ends) ** 2).mean(axis=(1, 2, 3))
        guess = params["error"]["log"]
        losses = errors + (guess - jnp.log(jax.lax.stop_gradient(errors))) ** 2
        first = jnp.zeros(len(errors), int)
        return losses, sums_by_bin(jnp.full(len(errors), guess), first, 1, "log_error")

    def timesteps(self, steps, schedule, strength=1.0):
        check(steps == 1, "steps", steps, "1 with this method")
        return np.array([schedule.num_train_timesteps - 1])

    def sample(self, student, schedule, x, context, timesteps, rows):
        return self._answer(student, schedule, x, context)

    def _answer(self, student, schedule, x, context):
        t = jnp.full(x.shape[0], schedule.num_train_timesteps - 1)
        x0, _ = schedule.to_x0_and_eps(student(x, t, context, jnp.ones(len(x))), x, *schedule.at(t))
        return x0


@pytest.fixture(scope="module")
def small(digits_teacher):
    return {"teacher": digits_teacher, **SMALL}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, small):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "end_points", EndPoints)
        folder = tmp_path_factory.mktemp("end_points") / "run"
        slam_jax.distill("digits", folder, **small, method=METHOD)
        yield folder


METHOD = {"name": "end_points", "w": 1.0, "teacher_steps": 2}


def test_both_networks_are_trained_and_the_student_is_exported(workdir):
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    guesses = [row["log_error0"] for row in rows]
    assert guesses[0] == 0 and len(set(guesses)) == len(guesses)  # with its own optimiser
    student = slam_jax.load(workdir)
    assert student.method == EndPoints(w=1.0, teacher_steps=2)
    assert "error" not in student.params
    assert slam_jax.sample(student, ["3"], steps=1).shape == (1, 8, 8, 1)
    with pytest.raises(InputError, match="--steps = 4, expected 1 with this method"):
        slam_jax.sample(student, ["3"], steps=4)


def test_its_run_goes_on_is_exported_and_measured(workdir, small, tmp_path):
    export.main(["--workdir", str(workdir), "--out", str(tmp_path / "student")])
    exported = slam_jax.load(tmp_path / "student")
    teacher = slam_jax.load(small["teacher"]["path"])
    rows = slam_jax.evaluate(exported, teacher, **SMALL["evaluation"], batch=100)
    reported = json.loads((workdir / "summary.json").read_text())["results"]
    numbers = [{**row, "model": 0} for row in (rows[1], reported[1])]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)
    slam_jax.distill("digits", workdir, resume=True, **small, method=METHOD)


def test_options_of_another_method_are_refused(workdir, small, tmp_path):
    with pytest.raises(InputError, match="config.method.gamma: no such option"):
        slam_jax.distill("digits", tmp_path / "run", **small, method={**METHOD, "gamma": "one"})
    with pytest.raises(InputError, match="config.method.name = 'slamm', expected one of slam"):
        slam_jax.distill("digits", tmp_path / "run", **small, method={"name": "slamm"})
    with pytest.raises(InputError, match="config.method.teacher_steps = 2000, expected at most"):
        method = {**METHOD, "teacher_steps": 2000}
        slam_jax.distill("digits", tmp_path / "run", **small, method=method)
    assert not (tmp_path / "run").exists()
