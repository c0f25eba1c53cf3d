"""A family from outside the package: an MLP on points in the plane, trained, distilled, drawn,
measured and exported."""

import dataclasses
import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slam_jax
from slam_jax.base.errors import InputError
from slam_jax.base.options import check
from slam_jax.commands import export, plan
from slam_jax.data.reference import Reference
from slam_jax.data.rejects import Rejects
from slam_jax.families.pipeline import Pipeline
from slam_jax.families.registry import FAMILIES
from slam_jax.families.trained_here import TrainedHere
from slam_jax.method.registry import schedule_from_config
from slam_jax.method.schedule import gamma_embedding

pytestmark = pytest.mark.slow  # whole runs

SIDES = ("left", "right")
GAMMA_FEATURES = 8
SCHEDULER = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class MLPConfig:
    hidden: int = 16
    gamma_features: int = 0

    def to_dict(self):
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class PlanePipeline(Pipeline):
    """Points are latents of one pixel with two channels, and pictures of two pixels."""

    network: MLPConfig
    example_prompts = SIDES

    def abstract_params(self, network):
        inputs = 2 + 2 + len(SIDES) + network.gamma_features
        shapes = {"inner": (inputs, network.hidden), "outer": (network.hidden, 2)}
        return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}

    def init(self, network, key):
        shapes, rng = self.abstract_params(network), np.random.default_rng(0)
        return jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(np.float32), shapes)

    def apply(self, network, remat="none"):
        def denoise(params, x, t, context, gamma):
            angles = t.astype(jnp.float32)[:, None] / 1000
            features = [x[:, 0, 0], jnp.sin(angles), jnp.cos(angles), context["side"]]
            if network.gamma_features:
                features.append(gamma_embedding(gamma, network.gamma_features))
            hidden = jnp.tanh(jnp.concatenate(features, axis=1) @ params["inner"])
            return (hidden @ params["outer"])[:, None, None]

        return denoise

    def gamma_network(self):
        return dataclasses.replace(self.network, gamma_features=GAMMA_FEATURES)

    def gamma_params(self, params):
        zeros = np.zeros((GAMMA_FEATURES, self.network.hidden), np.float32)
        return {**params, "inner": jnp.concatenate([params["inner"], zeros])}

    def latents(self, frozen, batch, key, examples):
        return batch["points"]

    def contexts(self, frozen, batch, w):
        side = jax.nn.one_hot(batch["tokens"][:, 0], len(SIDES))
        return {"side": side}, None if w == 0 else {"side": jnp.zeros_like(side)}

    def decode(self, frozen, latents):
        return jnp.clip(latents, -1, 1).reshape(-1, 1, 2, 1)

    def prompts(self, texts):
        for text in texts:
            if text not in SIDES:
                raise InputError(f"prompt {text!r}, expected one of {', '.join(SIDES)}")
        return {"tokens": np.array([[SIDES.index(text)] for text in texts], np.int32)}


class Points:
    """256 points of two clouds."""

    name = identity = "points"

    def __init__(self):
        rng, self.sides = np.random.default_rng(1), np.arange(256) % 2
        self.points = rng.normal(0, 0.1, (256, 2)) + np.array([[-0.5, 0], [0.5, 0]])[self.sides]

    def __len__(self):
        return 256

    def read(self, indices, seeds):
        points = self.points[indices].astype(np.float32)[:, None, None]
        tokens = self.sides[indices].astype(np.int32)[:, None]
        return {"points": points, "tokens": tokens}, Rejects()


class Plane(TrainedHere):
    name = "plane"

    @classmethod
    def make(cls, network, prediction_type):
        known = set(network) <= {"hidden", "gamma_features"}
        check(known, "network", network, "hidden and gamma_features")
        scheduler = {**SCHEDULER, "prediction_type": prediction_type}
        schedule = schedule_from_config(scheduler)
        return PlanePipeline(MLPConfig(**network), scheduler, schedule, (1, 1, 2))

    def source(self, data):
        return Points()

    def batch_shapes(self, data, size):
        batch, _ = Points().read(np.arange(1), np.arange(1))
        return {k: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for k, a in batch.items()}

    @classmethod
    def reference(cls):
        points = Points()
        labels = tuple(SIDES[side] for side in points.sides)
        return Reference(points.points.reshape(-1, 1, 2, 1), labels)


CONFIG = """
from slam_jax.config.options import default_config

def get_config():
    config = default_config()
    config.name = config.teacher.family = "plane"
    config.teacher.network = dict(hidden=16)
    config.teacher.training.update(steps=300, batch_size=64, ema=0.99)
    config.teacher.training.optimizer.learning_rate = 1e-2
    config.method.update(w=1.0, sigma="linear", conditioning="both")
    config.training.update(steps=20, batch_size=64, sample_every=10)
    config.training.optimizer.learning_rate = 1e-3
    config.evaluation.update(batch=64, samples=128, teacher_steps=(20,), student_steps=(1, 4))
    return config
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "plane", Plane)
        folder = tmp_path_factory.mktemp("plane")
        (folder / "config.py").write_text(CONFIG)
        slam_jax.distill(str(folder / "config.py"), folder / "run")
        yield folder / "run"


def test_the_teacher_learnt_and_the_report_says_so(workdir):
    rows = json.loads((workdir / "summary.json").read_text())["results"]
    assert [row["model"] for row in rows] == ["teacher", "student", "student"]
    assert set(rows[0]) == {
        "model",
        "steps",
        "fd_pixels",
        "fd_features",
        "label_accuracy",
        "fd_to_teacher",
        "rmse_to_teacher",
    }
    assert rows[0]["label_accuracy"] > 0.9  # half would be chance
    metrics = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert "rmse_to_teacher_4" in metrics[-1]


def test_the_student_is_loaded_and_draws(workdir):
    student = slam_jax.load(workdir)
    images = slam_jax.sample(student, ["left"] * 30 + ["right"] * 30, steps=4)
    across = images[:, 0, 0, 0].astype(float)
    assert across[:30].mean() < 127 < across[30:].mean()
    with pytest.raises(InputError, match="prompt 'up'"):
        slam_jax.sample(student, "up")
    rows = slam_jax.evaluate(
        student, slam_jax.load(workdir / "teacher"), teacher_steps=(5,), batch=64
    )
    assert len(rows) == 5


def test_a_checkpoint_is_exported(workdir, tmp_path):
    export.main(["--workdir", str(workdir), "--step", "20", "--out", str(tmp_path / "student")])
    exported, student = slam_jax.load(tmp_path / "student"), slam_jax.load(workdir)
    assert exported.info["checkpoint"] == 20
    same = jax.tree.map(np.array_equal, exported.params, student.params)
    assert all(jax.tree.leaves(same))


def test_what_it_needs_is_planned(workdir, capsys):
    config = ["--config", str(workdir.parent / "config.py")]
    with pytest.raises(SystemExit) as exit_:
        plan.main([*config, "--mesh", "data=2,fsdp=1", "--memory", "1"])
    assert exit_.value.code == 0
    assert "fits into 1.00 GiB" in capsys.readouterr().out


def test_a_network_that_does_not_exist_is_refused(workdir, tmp_path):
    config = str(workdir.parent / "config.py")
    with pytest.raises(InputError, match=r"config.teacher.network = .*, expected hidden and"):
        slam_jax.distill(config, tmp_path / "run", teacher={"network": {"depth": 3}})
    with pytest.raises(InputError, match="config.teacher.family = 'plain', expected one of"):
        slam_jax.distill(config, tmp_path / "run", teacher={"family": "plain"})
    assert not (tmp_path / "run").exists()
