"""Workdirs of Stable Diffusion as interrupted runs leave them, made without training."""

import json

import jax
import numpy as np
import tiny_students

from slam_jax.config.options import default_config
from slam_jax.config.validate import freeze, to_json
from slam_jax.training.checkpoint import Checkpoints
from slam_jax.training.step import TrainState


def make_run(workdir, folder, steps=(1, 2), conditioning="both"):
    """A workdir as an interrupted run leaves it; the EMA of step n has tiny_students' seed n."""
    config = default_config()
    config.teacher.path, config.data.source = str(folder), "photographs"
    config.data.resolution, config.method.conditioning = 64, conditioning
    workdir.mkdir()
    (workdir / "config.json").write_text(to_json(freeze(config)))
    made = {n: tiny_students.make(folder, conditioning, seed=n) for n in steps}
    _, family = made[steps[0]]
    (workdir / "teacher.json").write_text(json.dumps(family.identity()))
    save_checkpoints(workdir, {n: student.params for n, (student, _) in made.items()})


def save_checkpoints(workdir, emas):
    """The raw weights and the optimiser's are not the EMA."""
    with Checkpoints(workdir / "checkpoints", len(emas), {}) as checkpoints:
        for step, ema in emas.items():
            zeros = jax.tree.map(np.zeros_like, ema)
            state = TrainState(np.int32(step), np.int32(0), zeros, ema, {"mu": zeros})
            checkpoints.save(step, state, {}, {"loss": float(step)})
