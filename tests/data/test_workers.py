"""Processes that read: a Ctrl-C is not for them, they end with the process that trains, and they
touch no device."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest

from slam_jax.config.validate import freeze
from slam_jax.parallel.sharding import make_mesh
from slam_jax.recipes.text_to_image import TextToImageJob

ROOT = Path(__file__).parents[2]
READER = """
import multiprocessing, signal, sys
from slam_jax.data.batches import Batches
from slam_jax.data.rejects import Rejects

class Numbers:
    name = identity = "numbers"
    def __len__(self):
        return 100
    def read(self, indices, seeds):
        return {"index": indices}, Rejects()

signal.signal(signal.SIGINT, lambda *_: None)
batches = Batches(Numbers(), 2, seed=0, workers=2).iterate(0)
for _ in range(4):
    next(batches)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
sys.stdin.readline()
for _ in range(50):
    next(batches)
print("has read on", flush=True)
sys.stdin.readline()
"""

NO_BACKEND = """
import sys
import cloudpickle
import jax
with open(sys.argv[1], "rb") as file:
    source = cloudpickle.load(file)
batch, _ = source.read([0], [0])
assert batch["images"].shape == (1, 64, 64, 3) and batch["tokens"].shape == (1, 1, 77)
jax.config.update("jax_num_cpu_devices", 3)  # an error once a backend has started
"""


@pytest.fixture
def reader():
    """A process that reads with workers, and their numbers."""
    process = subprocess.Popen(
        [sys.executable, "-c", READER],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as a terminal gives a command a group of its own
    )
    with process:
        yield process, [int(pid) for pid in process.stdout.readline().split()]
        process.kill()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_workers_read_on_after_a_ctrl_c_and_end_with_a_process_that_is_killed(reader):
    process, workers = reader
    assert len(workers) == 2 and all(map(is_alive, workers))
    os.killpg(process.pid, signal.SIGINT)
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert process.stdout.readline() == "has read on\n"
    process.kill()
    end = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))
    assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_processes_that_read_start_no_backend(teachers, tmp_path):
    """On a GPU each of them would take a part of its memory."""
    config = runpy.run_path(f"{ROOT}/configs/sd.py")["get_config"]("tiny")
    config.teacher.path = str(teachers["sd15"])
    job = TextToImageJob(freeze(config), tmp_path, make_mesh())
    (tmp_path / "source").write_bytes(cloudpickle.dumps(job.source()))
    command = [sys.executable, "-c", NO_BACKEND, str(tmp_path / "source")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
