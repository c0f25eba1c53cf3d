"""Ctrl-C and SIGTERM while C++ runs and Python does not, as in a long compilation."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A mutex that is locked twice: no signal ends the wait, and Python's lock is not held.
RUN = """
import ctypes, signal, sys
from slam_jax.commands.long_run import long_run
from slam_jax.training.stop_request import StopRequest

# A process that a shell starts in the background ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

def hold():
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    print("held", flush=True)
    lock(mutex)

def work(*_):
    if sys.argv[1] == "no loop":
        hold()
    with StopRequest() as stop:
        stop.is_harmless = sys.argv[1] == "first step"
        hold()

long_run("train", work, None, ["--config", "digits"])
"""
WAY_ON = "slam_jax train --config digits --resume\n"


@pytest.mark.parametrize(
    ("where", "number", "said"),
    [
        ("no loop", signal.SIGINT, ""),
        ("first step", signal.SIGTERM, None),
        ("first step", signal.SIGINT, None),
        ("later", signal.SIGTERM, "stopping after this step; Ctrl-C again stops at once\n"),
    ],
)
def test_a_signal_ends_a_command_while_cpp_runs(where, number, said):
    """The second one; and the first, where nothing would be lost."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN, where],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            time.sleep(0.2)
            process.send_signal(number)
            if said is not None:
                time.sleep(0.5)
                assert process.poll() is None
                process.send_signal(number)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err.startswith(f"\n{said}" if said else "\ninterrupted; ")
    assert err.endswith(WAY_ON) and err.count("interrupted") == 1
