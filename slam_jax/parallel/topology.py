"""TPUs that are not here, for which XLA compiles all the same.

`jax.experimental.topologies` describes their devices; libtpu, which has the compiler, needs no TPU
for that. It can crash, and takes its process along: `compile_apart` has it work in one of its own.
"""

import importlib.util
import math
import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any

import jax
from jax.experimental import topologies

from slam_jax.base.errors import BackendError, InputError
from slam_jax.parallel import runtime
from slam_jax.parallel.program import Program

GIB = 2**30
# Of a chip: GiB of memory, sides of a topology, and what libtpu must be told. A chip of v4 has two
# cores, which pass for one device.
CHIPS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "v4": (32, 3, {"chip_config_name": "megacore"}),
    "v5e": (16, 2, {}),
    "v5p": (95, 3, {}),
    "v6e": (32, 2, {}),
}
# Nothing asks for the machine's metadata, waits for a TPU that another process holds, or overflows
# the stack of a thread of the compiler, as it does with the convolutions of SD 1.5.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
STACK = "--fibers_default_thread_stack_size=8388608"

Devices = Sequence[Any]
# Lowers a program for devices; a function of a module, or a partial of one: it is pickled.
Lower = Callable[[Devices], jax.stages.Lowered]


@dataclass(frozen=True)
class Topology:
    """TPUs in a grid.

    Attributes:
      chip: a key of CHIPS.
      sides: chips along each side of the grid.
    """

    chip: str
    sides: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.chip}:{'x'.join(map(str, self.sides))}"

    @property
    def memory(self) -> int:
        """Bytes of a device, of which the TPU keeps a part for itself."""
        return CHIPS[self.chip][0] * GIB

    @property
    def size(self) -> int:
        """How many devices it has."""
        return math.prod(self.sides)

    def devices(self) -> Devices:
        """What stands for the devices in a mesh.

        Raises:
          RuntimeError: libtpu does not know the grid; its first line says why.
        """
        options = CHIPS[self.chip][2]
        bounds = (1, 1, 1) if set(self.sides) == {1} else (2, 2, 1)
        return topologies.get_topology_desc(
            str(self), "tpu", chips_per_host_bounds=bounds, **options
        ).devices


class DoesNotFit(Exception):  # noqa: N818
    """A program needs more memory than the devices have.

    Attributes:
      need: bytes of a device; infinite where nobody says how many.
    """

    def __init__(self, said: str, need: float = math.inf):
        super().__init__(said, need)
        self.need = need

    def __str__(self) -> str:
        return self.args[0]

    @classmethod
    def of(cls, said: str) -> "DoesNotFit":
        """From what the compiler says."""
        found = re.search(r"Used ([\d.]+)G of|\(([\d.]+)G\) exceeds", said)
        return cls(said, float(found[1] or found[2]) * GIB if found else math.inf)


def parse_topology(text: str) -> Topology:
    """The topology of "v5e:2x4".

    Raises:
      InputError: there is none of that name.
    """
    chip, _, grid = text.partition(":")
    known = ", ".join(f"{chip}:{'2x2x1'[: 2 * sides - 1]}" for chip, (_, sides, _) in CHIPS.items())
    expected = f"--topology {text}: expected a kind of TPU and its grid of chips, such as {known}"
    if chip not in CHIPS or not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})*", grid):
        raise InputError(expected)
    sides = tuple(map(int, grid.split("x")))
    if len(sides) != CHIPS[chip][1]:
        raise InputError(f"{expected}; {chip} has {CHIPS[chip][1]} sides")
    if set(sides) != {1} and any(side % 2 for side in sides[:2]):
        raise InputError(f"{expected}; its first two sides are even, or all sides are 1")
    return Topology(chip, sides)


def check_compiler() -> str:
    """The version of the compiler for TPUs.

    Raises:
      InputError: it is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("--topology: libtpu compiles for TPUs; pip install 'slam_jax[tpu-plan]'")
    return metadata.version("libtpu")


def compile_apart(topology: Topology, lower: Lower) -> Program:
    """What the compiler for TPUs makes of a program, in a process of its own.

    Args:
      topology: where it is to run.
      lower: makes the program.

    Raises:
      DoesNotFit: the program, into the memory of a device.
      InputError: as `lower`.
      BackendError: the compiler failed, or was killed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile() as log, ours:
        process = context.Process(target=_work, args=(topology, lower, theirs, log.name))
        process.start()
        theirs.close()
        try:
            result = ours.recv()
        except EOFError:
            result = None
        process.join()
        said = log.read().decode(errors="replace").split("\n")
    if isinstance(result, Program):
        return result
    if isinstance(result, Exception):
        raise result
    if (code := process.exitcode or 0) < 0:
        name = signal.Signals(-code).name
        less = "perhaps for want of memory; with JAX_OPTIMIZATION_LEVEL=O1 it needs less"
        why = less if name == "SIGKILL" else "an error of its own"
        raise BackendError(f"the compiler for {topology} was ended by {name}: {why}")
    last = next((line for line in reversed(said) if line.strip()), "no reason is known")
    raise BackendError(f"the compiler for {topology} failed: {last}")


def _work(topology: Topology, lower: Lower, out: Connection, log: str) -> None:
    """The other process: sends a Program or an error."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):  # libtpu says much
        os.dup2(file, stream)
    os.environ.update(ENVIRONMENT)
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = f"{STACK} {flags}".strip()
    jax.config.update("jax_platforms", "cpu")
    runtime.configure()
    try:
        out.send(Program.of(lower(topology.devices())))
    except InputError as error:
        out.send(error)
    except jax.errors.JaxRuntimeError as error:
        said = " ".join(str(error).split("\n\n")[0].split())
        refused = "RESOURCE_EXHAUSTED" in said
        out.send(DoesNotFit.of(said) if refused else BackendError(f"{topology}: {said}"))
