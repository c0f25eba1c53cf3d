"""The processes of one run: they join, agree, and leave together.

`jax.distributed` watches them, and aborts all when one is lost. Where there is one process,
nothing here costs anything.
"""

import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slam_jax.base.errors import BackendError, InputError
from slam_jax.base.tree import differences
from slam_jax.parallel.runtime import devices

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
JOIN = 120  # seconds in which all processes have to come
HEARTBEAT = 40  # seconds without a sign of life of a process after which JAX aborts all
LEAVE = 20  # seconds after the first process left, at which JAX aborts those that did not
FAILED = (
    "error: the run has failed, for a reason that is above or in the log of another process; the "
    "newest checkpoint is kept: start all again with --resume"
)


def join() -> None:
    """Joins the other processes. Call it before anything looks for devices.

    Reads JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; where none of them is set,
    JAX looks for SLURM, Kubernetes, Open MPI or a TPU. Where the others do not come, this process
    ends here, with one line.

    Raises:
      InputError: the variables are incomplete or malformed, or nothing else tells about the other
        processes.
      BackendError: JAX refuses the platform that the user asks for.
    """
    options = _from_environment()
    if options.get("num_processes") == 1:
        return
    # JAX would keep SIGTERM to itself until the process ends; the loop's handler saves and stops.
    jax.config.update("jax_enable_preemption_service", False)
    # In a thread: JAX waits where neither Ctrl-C nor a time limit reaches it.
    joined = ThreadPoolExecutor(1).submit(
        jax.distributed.initialize,
        **options,
        initialization_timeout=JOIN + 600,  # JAX aborts at it
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=LEAVE,
    )
    try:
        joined.result(JOIN)
    except (TimeoutError, KeyboardInterrupt):
        where = options.get("coordinator_address", "the first one")
        print(
            f"error: not all processes came to {where} (limit: {JOIN} s); start every one, with "
            f"the same {VARIABLES[0]} and {VARIABLES[1]} and another {VARIABLES[2]} each",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # an ordinary end would wait for JAX
    except Exception as error:
        why = f"JAX cannot join the processes: {' '.join(str(error).split())[:300]}"
        if not options and "should be defined" in why:
            names = ", ".join(VARIABLES)
            why = f"no SLURM, Kubernetes, Open MPI or TPU was found; set {names} for each process, "
            why += "or leave --distributed out"
        raise InputError(f"--distributed: {why}") from error
    devices()


def is_main() -> bool:
    """Whether this process writes the logs and reports."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait(name: str) -> None:
    """Waits until every process has come to the place with this name."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(name)


def as_first(flag: bool) -> bool:
    """The first process's answer, in every process; all ask at the same place."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


def exchange(text: str) -> list[str]:
    """The texts of all processes, in every process."""
    if not jax.distributed.is_initialized():
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.pad(data, (0, sizes.max() - len(data)))
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def compare(record: dict[str, Any]) -> None:
    """Makes sure that all processes have the same record, of config and versions, as JSON has it.

    Raises:
      InputError: in every process, where any has another record than process 0; names the process
        and the first key that differs.
    """
    count = {VARIABLES[1]: os.environ.get(VARIABLES[1])}  # JAX goes by that of process 0
    first, *others = map(json.loads, exchange(json.dumps({**count, **record})))
    for index, other in enumerate(others, 1):
        for key, value, there in differences(first, other):
            raise InputError(
                f"process {index} has another config or other versions than process 0: {key} is "
                f"{there}, not {value}; start all processes with the same command and environment"
            )


class Votes:
    """Whether any process asked for something, such as to stop: the same answer on all of them.

    With several processes the answer is that of the call before, so that nothing waits for work
    that the devices have only just been given. Every process has to call it equally often, at the
    same places between other computations.

    Args:
      count: how many questions there are.
    """

    def __init__(self, count: int):
        mesh = Mesh(np.array(jax.devices()), ("all",))
        self._rows = NamedSharding(mesh, PartitionSpec("all"))
        whole = NamedSharding(mesh, PartitionSpec())
        self._any = jax.jit(lambda votes: votes.max(axis=0), out_shardings=whole)
        self._before: Any = np.zeros(count, np.int32)

    def __call__(self, *asked: bool) -> tuple[bool, ...]:
        """Gives this process's votes; returns whether any process voted for each question."""
        if not jax.distributed.is_initialized():
            return tuple(map(bool, asked))
        rows = np.tile(np.array(asked, np.int32), (jax.local_device_count(), 1))
        answer = self._any(jax.make_array_from_process_local_data(self._rows, rows))
        before, self._before = self._before, answer
        return tuple(bool(votes) for votes in jax.device_get(before))


@contextmanager
def together(agreed: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Around a whole run: the processes leave together. Does nothing where there is one process.

    A process that fails says why and ends with exit code 1; JAX then aborts the others, but those
    that fail too within LEAVE / 2 seconds can say why.

    Args:
      agreed: exceptions that every process raises at the same place; they go on to the caller when
        all processes have come to it.
    """
    if not jax.distributed.is_initialized():
        yield
        return
    # Python cannot speak when JAX aborts it. A shell can, which sees its pipe close.
    command = ["sh", "-c", 'read said || printf "\\n%s\\n" "$0" >&2', FAILED]
    shell = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    stop, seconds, said = None, LEAVE, True
    try:
        try:
            yield
        except agreed as error:
            stop = error
        wait("the end")
    except (InputError, BackendError) as error:
        stop, seconds = SystemExit(1), LEAVE / 2
        print(f"error: {error}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        stop, seconds = SystemExit(130), 0
    except BaseException:
        stop, seconds, said = SystemExit(1), LEAVE / 2, False
        traceback.print_exc()
    if said:
        shell.communicate(b"said\n")
    # Where the others do not come, JAX would abort this process too.
    limit = threading.Timer(seconds, os._exit, [getattr(stop, "code", 1)])
    limit.start()
    jax.distributed.shutdown()
    limit.cancel()
    if stop:
        raise stop


def _from_environment() -> dict[str, Any]:
    """The arguments for `jax.distributed.initialize` that the variables give; none: empty."""
    texts = {name: os.environ.get(name, "").strip() for name in VARIABLES}
    if not any(texts.values()):
        return {}
    if missing := [name for name, text in texts.items() if not text]:
        raise InputError(
            f"--distributed: {' and '.join(missing)} is not set; set all of {', '.join(VARIABLES)}"
        )
    address, count, index = texts.values()
    host, _, port = address.rpartition(":")
    expected = (
        (host and port.isdecimal() and 0 < int(port) < 2**16, "HOST:PORT of process 0"),
        (count.isdecimal() and int(count), "the number of processes"),
        ((index + count).isdecimal() and int(index) < int(count), "0, 1, ... for each process"),
    )
    for (name, text), (fits, what) in zip(texts.items(), expected, strict=True):
        if not fits:
            raise InputError(f"{name} = {text!r}: expected {what}")
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
        "cluster_detection_method": "deactivate",
    }
