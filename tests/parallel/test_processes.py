"""Several real processes with fake devices: they join, agree, hear of a failure, and end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from slam_jax.base.errors import InputError
from slam_jax.parallel import processes
from slam_jax.parallel.processes import VARIABLES

ROOT = Path(__file__).parents[2]
ABORTED = -signal.SIGABRT  # by JAX


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(scenario, folder, variables):
    """One process of processes_run.py, with nothing of JAX in its environment but what is given."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "SLURM_"))}
    # When a process is lost, gloo raises at once with one device each, and waits for ever with two.
    devices = "1" if scenario == "collective" else "2"
    settings = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": devices, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", ROOT / "tests/support/processes_run.py", scenario]
        + [str(folder)],
        env={**clean, **settings, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Pair:
    """Two processes of one run; the test ends with both gone."""

    def __init__(self, scenario, folder, counts=("2", "2")):
        self.folder = folder / scenario
        self.folder.mkdir(parents=True)
        address = f"127.0.0.1:{free_port()}"
        self.processes = [
            start(scenario, self.folder, dict(zip(VARIABLES, (address, n, str(i)), strict=True)))
            for i, n in enumerate(counts)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def signal_when_ready(self, index, number):
        limit = time.monotonic() + 60
        while len(list(self.folder.iterdir())) < 2:
            assert time.monotonic() < limit
            time.sleep(0.05)
        time.sleep(0.5)
        self.processes[index].send_signal(number)

    def end(self, index, timeout=60):
        """(exit code, stdout, last line of stderr, stderr)"""
        out, err = self.processes[index].communicate(timeout=timeout)
        out = "\n".join(line for line in out.splitlines() if not line.startswith("[Gloo]"))
        return self.processes[index].returncode, out, err.splitlines()[-1] if err else "", err


@pytest.mark.slow
def test_a_run_that_ends_well(tmp_path):
    with Pair("agree", tmp_path) as pair:
        for index in range(2):
            code, out, _, err = pair.end(index)
            assert code == 0, err
            heard, answers, waited, main = out.splitlines()[-2].split("; ")
            assert heard == "SIGTERM"
            # Each answer belongs to the call before: process 1 asks in call 1, process 0 in call 3.
            assert answers == "00 00 10 00 01"
            assert waited == ("True" if index == 0 else "False")
            assert main == str(index == 0)
            assert out.splitlines()[-1] == "out: all stopped"
            assert "Traceback" not in err
            assert "error" not in err.lower()


def test_a_config_that_differs_ends_both_with_the_same_line(tmp_path):
    with Pair("differ", tmp_path) as pair:
        for index in range(2):
            code, _, line, _ = pair.end(index)
            assert code == 1
            assert line == (
                "error: process 1 has another config or other versions than process 0: "
                "config.optimizer.learning_rate is 0.0002, not 0.0001; start all processes with "
                "the same command and environment"
            )


@pytest.mark.slow
def test_processes_that_fail_and_processes_that_are_only_slow(tmp_path):
    scenarios = ("fail", "crash", "alike", "slow")
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(Pair(scenario, tmp_path)) for scenario in scenarios]
        pairs.append(stack.enter_context(Pair("count", tmp_path, ("2", "3"))))
        fail, crash, alike, slow, count = [[pair.end(i) for i in range(2)] for pair in pairs]

    # The other waits in a collective: Gloo may raise before JAX aborts.
    assert fail[0][0] == 1 and fail[1][0] in (1, ABORTED)
    assert fail[0][2] == "error: data: nothing there" and "Traceback" not in fail[0][3]
    assert fail[1][2] == processes.FAILED

    assert [end[0] for end in crash] == [ABORTED, 1]
    assert "in crash" in crash[1][3] and "ZeroDivisionError: one by\nnothing" in crash[1][3]
    assert "stack trace" not in crash[1][3]  # of C++
    assert crash[0][2] == processes.FAILED

    for code, _, line, err in alike:
        assert (code, line) == (1, "error: data: nothing at all") and "Traceback" not in err

    for code, out, _, err in slow:
        assert code == 0, err
        assert out.splitlines()[-1] == "the sum is 4"

    for code, _, line, _ in count:
        assert code == 1 and "JAX_NUM_PROCESSES is 3, not 2; start all" in line


@pytest.mark.slow
def test_lost_processes(tmp_path):
    """Killed or stopped; JAX ends the other, in a collective and in busy Python."""
    cases = [
        ("collective", 0, signal.SIGKILL),
        ("busy", 0, signal.SIGKILL),
        ("collective", 1, signal.SIGKILL),
        ("waiting", 1, signal.SIGSTOP),
        ("busy", 0, signal.SIGSTOP),
    ]
    with contextlib.ExitStack() as stack:
        pairs = [
            stack.enter_context(Pair(case[0], tmp_path / str(number)))
            for number, case in enumerate(cases)
        ]
        for pair, (_, index, number) in zip(pairs, cases, strict=True):
            pair.signal_when_ready(index, number)
        for pair, (_, index, _) in zip(pairs, cases, strict=True):
            code, _, last, err = pair.end(1 - index, timeout=40)
            assert last == processes.FAILED
            assert code == ABORTED or code == 1 and "Gloo" in err  # which may raise before


def test_processes_that_stay_alone(tmp_path):
    """No process 0; no process 1; nothing that tells about others."""
    one, two = free_port(), free_port()
    common = {"JAX_NUM_PROCESSES": "2", "JOIN_TIMEOUT": "2"}
    zero_missing = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{one}", "JAX_PROCESS_ID": "1", **common}
    one_missing = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{two}", "JAX_PROCESS_ID": "0", **common}
    running = [start("agree", tmp_path, v) for v in (zero_missing, one_missing, {})]
    ends = [(*p.communicate(timeout=60), p.returncode) for p in running]
    assert [(out, code) for out, _, code in ends] == [("", 1)] * 3
    lines = [err.strip().splitlines() for _, err, _ in ends]
    for line, port in ((lines[0], one), (lines[1], two)):
        assert line[-1] == (
            f"error: not all processes came to 127.0.0.1:{port} (limit: 2 s); start every one, "
            "with the same JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES and another "
            "JAX_PROCESS_ID each"
        )
    assert lines[2] == [
        "error: --distributed: no SLURM, Kubernetes, Open MPI or TPU was found; set "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID for each process, or leave "
        "--distributed out"
    ]


@pytest.mark.parametrize(
    ("address", "count", "index", "message"),
    [
        (None, "2", "0", "JAX_COORDINATOR_ADDRESS is not set"),
        ("a:1", None, None, "JAX_NUM_PROCESSES and JAX_PROCESS_ID is not set"),
        ("10.0.0.1", "2", "0", "JAX_COORDINATOR_ADDRESS = '10.0.0.1': expected HOST:PORT"),
        ("a:65536", "2", "0", "JAX_COORDINATOR_ADDRESS = 'a:65536': expected HOST:PORT"),
        (":1234", "2", "0", "JAX_COORDINATOR_ADDRESS = ':1234': expected HOST:PORT"),
        ("a:1", "0", "0", "JAX_NUM_PROCESSES = '0': expected the number of processes"),
        ("a:1", "two", "0", "JAX_NUM_PROCESSES = 'two': expected the number of processes"),
        ("a:1", "2", "2", "JAX_PROCESS_ID = '2': expected 0, 1, ..."),
        ("a:1", "2", "-1", "JAX_PROCESS_ID = '-1': expected 0, 1, ..."),
    ],
)
def test_variables_that_make_no_sense(monkeypatch, address, count, index, message):
    for name, value in zip(VARIABLES, (address, count, index), strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        processes.join()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_process_needs_none_of_it(monkeypatch):
    for name, value in zip(VARIABLES, ("a:1", "1", "0"), strict=True):
        monkeypatch.setenv(name, value)
    before = threading.active_count()
    processes.join()
    assert processes.is_main()
    processes.wait("here")
    processes.compare({})
    votes = processes.Votes(2)
    assert votes(True, False) == (True, False)
    assert votes(False, True) == (False, True)
    with pytest.raises(ZeroDivisionError), processes.together():
        raise ZeroDivisionError
    assert threading.active_count() == before and not jax.distributed.is_initialized()
