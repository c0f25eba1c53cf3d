"""The processes of one run: they join, agree, hear of a failure, and leave together.

The coordination service of `jax.distributed`, which lives in process 0, carries all of it. A
process that is alone never touches it: then nothing here costs anything.
"""

import json
import math
import os
import re
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # the key-value store has no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slam_jax.base.errors import BackendError, InputError
from slam_jax.parallel.watchdog import Lookout, reachable, say

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
HEARTBEAT = 40  # seconds without a sign of life after which a process counts as gone
END = 300  # seconds in which all processes come to the end of a run that was asked to stop
_DAY = 24 * 3600
# What a collective, a barrier or a checkpoint says when another process is gone.
_OF_OTHERS = re.compile(
    r"^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED)|gloo|nccl|barrier|socket closed|"
    r"connection (closed|reset|refused)",
    re.IGNORECASE,
)
_lookout: Lookout | None = None


def join(timeout: float = 120) -> None:
    """Joins the other processes, and watches from then on that none is lost.

    Reads JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; where none of them is set,
    JAX looks for SLURM, Kubernetes, Open MPI or a TPU. Call it before anything looks for devices.
    Ends this process, with one line and exit code 1, where the others do not come in time.

    Args:
      timeout: seconds until all processes have to be there.

    Raises:
      InputError: the variables are incomplete or malformed, or nothing else tells about the other
        processes.
    """
    global _lookout
    options = _from_environment()
    if options.get("num_processes") == 1:
        return
    # JAX would take SIGTERM over; the loop's own handler saves and stops.
    jax.config.update("jax_enable_preemption_service", False)
    # Without it the service makes JAX abort all processes when one is lost, before they can say so.
    jax.config.update("jax_enable_recoverability", True)
    _initialize(options, timeout)
    if global_state.num_processes > 1:
        _lookout = Lookout(
            global_state.client,
            global_state.process_id,
            global_state.num_processes,
            global_state.coordinator_address,
            HEARTBEAT,
        )
        _compare_counts(_lookout, timeout)


def is_main() -> bool:
    """Whether this process writes the logs and reports."""
    return _lookout is None or _lookout.index == 0


def wait(name: str) -> None:
    """Waits until every process has come to the same place.

    Args:
      name: of the place; the same in every process.
    """
    if _lookout:
        _lookout.barrier(name, _DAY)


def as_first(flag: bool) -> bool:
    """The first process's answer, in every process; all ask at the same place."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag))) if _lookout else flag


def compare(record: str) -> None:
    """Makes sure, once in a run, that all processes have the same record, of config and versions.

    Args:
      record: JSON text of an object.

    Raises:
      InputError: on every process, where any has another record than process 0; names the process
        and the first key that differs.
    """
    if _lookout is None:
        return
    if _lookout.index == 0:
        _lookout.put("record", record)
    first = json.loads(_lookout.get("record", _DAY))
    if change := _first_difference(first, json.loads(record)):
        key, here, there = change
        _lookout.put(
            f"differs/{_lookout.index:06d}",
            f"process {_lookout.index} has another config or other versions than process 0: {key} "
            f"is {there}, not {here}; start all processes with the same command and environment",
        )
    _lookout.barrier("compared", _DAY)
    if found := _lookout.listed("differs"):
        raise InputError(min(found)[1])


class Votes:
    """Whether any process asked for something, such as to stop: the same answer on all of them.

    With several processes the answer is that of the call before, so that nothing waits for work
    that the devices have only just been given. Every process has to call it equally often, at the
    same places between other computations.

    Args:
      count: how many questions there are.
    """

    def __init__(self, count: int):
        self._before = None
        if _lookout:
            mesh = Mesh(np.array(jax.devices()), ("all",))
            self._rows = NamedSharding(mesh, PartitionSpec("all"))
            self._any = jax.jit(
                lambda votes: votes.max(axis=0),
                out_shardings=NamedSharding(mesh, PartitionSpec()),
            )
            self._before = np.zeros(count, np.int32)

    def __call__(self, *asked: bool) -> tuple[bool, ...]:
        """Gives this process's votes; returns whether any process voted for each question."""
        if self._before is None:
            return tuple(map(bool, asked))
        rows = np.tile(np.array(asked, np.int32), (jax.local_device_count(), 1))
        answer = self._any(jax.make_array_from_process_local_data(self._rows, rows))
        before, self._before = self._before, answer
        return tuple(bool(votes) for votes in jax.device_get(before))


@contextmanager
def together(agreed: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Around a whole run: all processes end when one fails, and each says why.

    Ends this process, with exit code 1, on any exception but the agreed ones; the others hear its
    message. Does nothing where there is one process.

    Args:
      agreed: exceptions that every process raises at the same place; they go on to the caller when
        all processes have come to it.
    """
    if _lookout is None:
        yield
        return
    stop: BaseException | None = None
    try:
        try:
            yield
        except agreed as error:
            stop = error
        _leave(END if stop else _DAY)
    except (InputError, BackendError) as error:
        _lookout.give_up(str(error))
    except KeyboardInterrupt:
        _lookout.give_up("interrupted", 130)
    except BaseException as error:
        if _OF_OTHERS.search(str(error)):
            time.sleep(HEARTBEAT + 20)  # until the lookout knows who it was, and ends this process
        traceback.print_exc()
        _lookout.give_up(" ".join(f"{type(error).__name__}: {error}".split())[:500])
    if stop:
        raise stop


def _leave(seconds: float) -> None:
    """Waits for the others and takes leave of them; nothing can be asked of them afterwards."""
    global _lookout
    try:
        _lookout.barrier("end", seconds)
    except Exception as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        _lookout.give_up(f"the other processes did not stop within {seconds:.0f} s")
    _lookout.leave()
    jax.distributed.shutdown()
    _lookout = None


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
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"{VARIABLES[0]} = {address!r}: expected HOST:PORT of process 0, such as 10.0.0.1:1234"
        )
    if not count.isdecimal() or int(count) < 1:
        raise InputError(f"{VARIABLES[1]} = {count!r}: expected the number of processes")
    if not index.isdecimal() or int(index) >= int(count):
        raise InputError(
            f"{VARIABLES[2]} = {index!r}: expected 0 to {int(count) - 1}, another for each process"
        )
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
        "cluster_detection_method": "deactivate",
    }


def _initialize(options: dict[str, Any], timeout: float) -> None:
    """`jax.distributed.initialize`, but with one clear line where JAX would abort the process."""
    failures: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                **options,
                # JAX aborts at its own limit, so that must not come first.
                initialization_timeout=math.ceil(timeout) + 600,
                heartbeat_timeout_seconds=HEARTBEAT,
            )
        except Exception as error:
            failures.append(error)

    # In a thread: JAX waits where neither Ctrl-C nor a time limit reaches it.
    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(timeout)
    if failures and not options and "should be defined" in str(failures[0]):
        raise InputError(
            "--distributed: no SLURM, Kubernetes, Open MPI or TPU was found; set "
            f"{', '.join(VARIABLES)} for each process, or leave --distributed out"
        ) from failures[0]
    if failures:
        why = " ".join(str(failures[0]).split())[:300]
        raise InputError(f"--distributed: JAX cannot join the processes: {why}") from failures[0]
    if thread.is_alive():
        say(_why_alone(timeout))
        os._exit(1)  # an ordinary end would wait for JAX, and print what it was about


def _compare_counts(lookout: Lookout, timeout: float) -> None:
    """JAX goes by the number that process 0 was told; with another one a process waits for ever."""
    if lookout.index == 0:
        lookout.put("count", str(lookout.count))
    elif (count := int(lookout.get("count", timeout))) != lookout.count:
        lookout.give_up(f"{VARIABLES[1]} = {lookout.count}, but process 0 has {count}")


def _why_alone(timeout: float) -> str:
    address = global_state.coordinator_address
    if address is None:
        return f"--distributed: the other processes were not found within {timeout:.0f} s"
    if global_state.process_id and not reachable(address):
        return (
            f"process {global_state.process_id} cannot reach process 0 at {address} within "
            f"{timeout:.0f} s; is it running, and is this its address ({VARIABLES[0]})?"
        )
    return (
        f"not all processes came to {address} within {timeout:.0f} s; start every one, with the "
        f"same {VARIABLES[1]} and another {VARIABLES[2]} each"
    )


def _first_difference(here: Any, there: Any, path: str = "") -> tuple[str, str, str] | None:
    """(dotted key, value, value) of the first key in which two JSON values differ."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in dict.fromkeys([*here, *there]):
            name = f"{path}.{key}" if path else key
            if key not in here or key not in there:
                values = [json.dumps(d[key]) if key in d else "missing" for d in (here, there)]
                return name, *values
            if found := _first_difference(here[key], there[key], name):
                return found
        return None
    return None if here == there else (path, json.dumps(here), json.dumps(there))
