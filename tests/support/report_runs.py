"""Workdirs as runs leave them, with numbers that a test chooses."""

import json
from pathlib import Path

import numpy as np

from slam_jax.config.options import default_config
from slam_jax.config.validate import freeze, to_json
from slam_jax.drawing.strips import save_strips

STEPS, EVERY = 400, 20


def config(**changes):
    """Options of a run of the digits, with others in the groups that are named."""
    values = default_config().to_dict()
    values["teacher"]["family"] = values["data"]["source"] = "digits"
    values["training"] |= {"steps": STEPS, "sample_every": 100, "log_every": EVERY}
    values["evaluation"] |= {"student_steps": (1, 4), "teacher_steps": (50,)}
    for group, options in changes.items():
        values[group] = values[group] | options if isinstance(options, dict) else options
    return freeze(values)


def rows(count=STEPS // EVERY, seed=0, **columns):
    """Rows of metrics of a training that goes well; `columns` are others: functions of a row's
    place from 0 to 1, and None for those to leave out."""
    rng = np.random.default_rng(seed)
    usual = {
        "loss": lambda u: 0.5 * np.exp(-2 * u),
        **{f"loss_t{i}": lambda u, i=i: (1 + i) * 0.1 * np.exp(-u) for i in range(4)},
        **{f"loss_gamma{i}": lambda u, i=i: (1 + i) * 0.1 for i in range(4)},
        "grad_norm": lambda u: 0.3,
        "learning_rate": lambda u: 1e-4 * (1 - u),
        "samples_per_second": lambda u: 100,
    }
    made = []
    for i in range(1, count + 1):
        noise = 1 + 0.02 * rng.standard_normal()
        found = {k: f(i / count) for k, f in {**usual, **columns}.items() if f is not None}
        row = {k: float(v) * noise for k, v in found.items() if v is not None}
        made.append({"step": i * EVERY, **row, "skipped": 0})
    return tuple(made)


def pictures(value=0.0, count=3, size=(8, 8), channels=1, seed=0):
    """Images around a value, no two alike, [count, H, W, C]."""
    rng = np.random.default_rng(seed)
    return np.clip(value + 0.2 * rng.standard_normal((count, *size, channels)), -0.99, 0.99)


def make_workdir(folder: Path, ladders=(100, 200, 300, 400), size=(8, 8), **changes) -> Path:
    """A run that goes well and has not finished: its config, metrics and ladders."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(config(**changes)))
    lines = [json.dumps(row) for row in rows()]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for step in ladders:
        drawn = {("teacher", 50): pictures(0.5, size=size)}
        for steps in (1, 4):
            drawn["student", steps] = pictures(-0.5 + step / 1000, size=size, seed=step + steps)
        save_strips(folder / f"samples/step_{step:06d}", drawn, ("a", "b", "c"), 20)
    return folder
