"""Checkpoints of processes that are killed, and of two that write and read together."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_checkpoint import bits, restored, save, values

from slam_jax.training.checkpoint_files import steps_in

ROOT = Path(__file__).parents[2]


def start(code, *arguments, devices=1):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


KILLED = """
import sys, time
from pathlib import Path
import test_checkpoint as t
t.save(Path(sys.argv[1]), 1)
from slam_jax.training import checksums
checksums.write = lambda folder: time.sleep(60)  # nothing is committed before the kill comes
t.save(Path(sys.argv[1]), 2)
"""


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    process = start(KILLED, tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("2*/state*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list(tmp_path.iterdir())) == 2 and steps_in(tmp_path) == [1]
    assert restored(tmp_path)[1] == {"next": 1}
    save(tmp_path, 3)
    assert {p.name for p in tmp_path.iterdir()} == {"1", "3"}


TWO = """
import sys, jax
from pathlib import Path
folder, port, process = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("localhost:" + port, 2, int(process))
import test_checkpoint as t
where = t.shardings(4, 2)
state = {s: jax.tree.map(lambda a, w: jax.make_array_from_callback(a.shape, w, lambda i: a[i]),
                         t.values(s), where) for s in (2, 4)}
with t.Checkpoints(Path(folder), 2, t.RECORD) as checkpoints:
    checkpoints.save(2, state[2], {"next": 2})
    checkpoints.save(4, state[4], {"next": 4})
with t.Checkpoints(Path(folder), 2, t.RECORD) as checkpoints:
    if process == "1":  # before this process comes to it, the other one waits
        t.flip(t.largest(Path(folder) / "4/state/ocdbt.process_1"))
    found, position = checkpoints.restore(t.values(0), where)
    assert position == {"next": 2}, position
    same = jax.tree.map(lambda a, b: all(t.bits(x.data) == t.bits(y.data) for x, y in
                        zip(a.addressable_shards, b.addressable_shards)), found, state[2])
    assert jax.tree.all(same), same
    checkpoints.save(4, state[4], {"next": 44})
"""


@pytest.mark.slow
def test_two_processes_fall_back_together_and_one_goes_on(tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    processes = [start(TWO, tmp_path, port, number, devices=4) for number in range(2)]
    with contextlib.ExitStack() as stack:
        [stack.callback(process.kill) for process in processes]
        errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert "note:" in errors[0] and "note:" not in errors[1]
    state, position = restored(tmp_path)
    assert bits(state) == bits(values(4)) and position == {"next": 44}
