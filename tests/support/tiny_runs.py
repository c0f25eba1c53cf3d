"""Small runs of Stable Diffusion, and commands in a process that finds no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

from slam_jax.commands import train as main

ROOT = Path(__file__).parents[2]
SMALL = [
    "--config.method.conditioning=both",
    "--config.training.steps=4",
    "--config.training.batch_size=8",
    "--config.training.sample_every=2",
    "--config.training.checkpoint_every=2",
    "--config.training.log_every=2",
    "--config.evaluation.teacher_steps=(2,)",
    "--config.evaluation.student_steps=(1,)",
]
WITHOUT_TORCH = """
import json, sys
from importlib import import_module
from importlib.machinery import PathFinder
find = PathFinder.find_spec  # finds neither from here on, as if they were not installed
missing = ("torch", "diffusers")
PathFinder.find_spec = lambda name, *more: None if name in missing else find(name, *more)
for command, *arguments in json.loads(sys.argv[1]):
    import_module(f"slam_jax.commands.{command}").main(arguments)
assert "jax" in sys.modules and not {"torch", "diffusers"} & sys.modules.keys()
"""


def flags(teacher, workdir, *more, config="sd"):
    """Of `slam_jax.main`, for a run of a minute."""
    run = ["--config", f"{ROOT}/configs/{config}.py:tiny", f"--config.teacher.path={teacher}"]
    return [*run, *SMALL, "--workdir", str(workdir), *more]


def launch(teacher, workdir, *more, config="sd"):
    main.main(flags(teacher, workdir, *more, config=config))


def run_without_torch(*commands):
    """Runs commands of slam_jax, each a list of its name and its arguments."""
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{ROOT}/.cache/jax"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
