"""The launcher's two processes with four devices each are the run of one process with eight."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from digits_runs import SMALL

from slam_jax.commands import train as main
from slam_jax.training.checkpoint_files import steps_in

ROOT = Path(__file__).parents[2]
OPTIONS = [
    *SMALL[2:],
    "--config.training.steps=20",
    "--config.training.log_every=1",
    "--config.training.sample_every=0",
    "--config.training.checkpoint_every=100",
    "--config.training.optimizer.learning_rate=8e-6",
    "--config.evaluation.student_steps=(1,)",
]


def losses(workdir):
    path = workdir / "metrics.jsonl"
    rows = [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows}


def start(workdir, *more):
    """The launcher with two processes of four devices each."""
    command = ["launch/local.sh", "--processes", "2", "configs/digits.py", *OPTIONS]
    return subprocess.Popen(
        [*command, "--workdir", str(workdir), *more],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_NUM_CPU_DEVICES": "4",
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_stop_and_one_goes_on_with_the_same_losses(digits_teacher, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    teacher = f"--config.teacher.path={digits_teacher['path']}"
    # In one process, on 8 devices.
    main.main([*SMALL[:2], *OPTIONS, teacher, "--workdir", str(whole)])
    reference = losses(whole)
    assert sorted(reference) == list(range(1, 21))

    run = start(parts, teacher, "--config.mesh.fsdp=2")
    while run.poll() is None and len(losses(parts)) < 5:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 130, said
    (step,) = steps_in(parts / "checkpoints")
    assert 5 <= step < 20 and f"stopped at step {step} of 20 (student), and saved" in said

    arguments = [*SMALL[:2], *OPTIONS, teacher, "--config.training.accumulation=2", "--resume"]
    main.main([*arguments, "--workdir", str(parts)])
    actual = losses(parts)
    assert actual.keys() == reference.keys()
    actual, reference = (np.array([rows[n] for n in range(1, 21)]) for rows in (actual, reference))
    np.testing.assert_allclose(actual[:, 0], reference[:, 0], rtol=1e-5)
    np.testing.assert_allclose(actual[:, 1], reference[:, 1], rtol=2e-4)
    assert (parts / "summary.md").exists() and "| student |" in capsys.readouterr().out
