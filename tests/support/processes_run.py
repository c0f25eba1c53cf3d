"""One process of a run of several, for test_processes.py: runs the scenario that it is told."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from slam_jax.base.errors import InputError
from slam_jax.parallel import processes

HEARD = []


class Stopped(Exception):
    """Agreed among the processes."""


def agree(index: int) -> None:
    """Votes, barriers, a record, SIGTERM and a stop, in a run that ends well."""
    os.kill(os.getpid(), signal.SIGTERM)
    processes.compare({"config": {"seed": 1, "name": "a"}})
    votes = processes.Votes(2)
    calls = [(False, False), (index == 1, False), (False, False), (False, index == 0), (False,) * 2]
    answers = [votes(*asked) for asked in calls]
    started = time.monotonic()
    time.sleep(0.5 * index)  # so process 0 has to wait
    processes.wait("here")
    waited = time.monotonic() - started
    processes.wait("here")
    digits = " ".join("".join(str(int(vote)) for vote in answer) for answer in answers)
    print(*HEARD, digits, waited > 0.4 and index == 0, processes.is_main(), sep="; ", flush=True)
    time.sleep(index)  # the end of one is no loss to the other
    raise Stopped("all stopped")


def differ(index: int) -> None:
    optimizer = {"learning_rate": 1e-4 * (index + 1)}
    processes.compare({"config": {"seed": 1, "optimizer": optimizer}})


def fail(index: int) -> None:
    """Process 0 reports bad input while process 1 waits for it in a collective."""
    if index == 0:
        time.sleep(1)
        raise InputError("data: nothing there")
    total()


def crash(index: int) -> None:
    """Process 1 has a bug while process 0 is busy."""
    if index == 1:
        raise ZeroDivisionError("one by\nnothing")
    time.sleep(60)


def alike(index: int) -> None:
    """Both have the same bad input, process 0 a little earlier."""
    time.sleep(index)
    raise InputError("data: nothing at all")


def count(index: int) -> None:
    """They were told different numbers of processes."""
    processes.compare({})


def slow(index: int) -> None:
    """Both hold Python's lock in C for longer than any patience with the lost."""
    ctypes.PyDLL(None).sleep(10)
    print(f"the sum is {total():.0f}")


def collective(index: int) -> None:
    """Ready; then process 0 waits in a collective for process 1, which never comes."""
    total()
    Path(sys.argv[2], str(index)).touch()
    if index == 0:
        total()
    time.sleep(60)


waiting = collective  # with two devices each


def busy(index: int) -> None:
    """Ready; then both keep Python busy."""
    total()
    Path(sys.argv[2], str(index)).touch()
    while True:
        sum(range(1000))


def total() -> float:
    """A sum over all devices of all processes."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",))
    rows = jax.make_array_from_process_local_data(
        jax.sharding.NamedSharding(mesh, P("all")), np.ones(jax.local_device_count(), np.float32)
    )
    return float(
        jax.jit(lambda a: a.sum(), out_shardings=jax.sharding.NamedSharding(mesh, P()))(rows)
    )


if __name__ == "__main__":
    processes.HEARTBEAT, processes.LEAVE = 8, 8
    processes.JOIN = int(os.environ.get("JOIN_TIMEOUT", "60"))
    signal.signal(signal.SIGTERM, lambda *_: HEARD.append("SIGTERM"))
    try:
        processes.join()
        with processes.together(agreed=(Stopped,)):
            globals()[sys.argv[1]](jax.process_index())
    except InputError as error:
        sys.exit(f"error: {error}")
    except Stopped as stop:
        print(f"out: {stop}")
