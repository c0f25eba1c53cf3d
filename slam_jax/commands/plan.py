"""Says what a run will need of each device, before anything is loaded, and what to change where
it does not fit.

slam-jax plan --config sd --mesh data=8,fsdp=1 --memory 80 [--config.KEY=VALUE]
slam-jax plan --config sd --topology v5e:2x4

Weights, state and gradients are counted from their shapes and the sharding rules, exactly. What a
step needs besides is what XLA sets aside for it: the step is compiled, for this machine's devices
where there are enough of them, else for CPU devices that are made up (at most two along "data";
more would make no difference to one of them). A CPU computes bfloat16 in float32, and each backend
orders a program in its own way: of a GPU or TPU that part is an estimate. With --no-compile it is
the sum of what the gradient keeps of the forward pass and of copies of weights: quick, but without
what an operation needs while it runs, and blind to what XLA merges. So it may be less or more.

With --topology the step is compiled by the compiler for TPUs, which needs none of them. What it
refuses does not fit; what it makes is described: memory with all padding, traffic, products.
"""

import argparse
import contextlib
import math
import re
import sys
from dataclasses import replace

import jax

from slam_jax.base.errors import InputError
from slam_jax.base.options import OptionError
from slam_jax.commands.command import parser_of, refusals
from slam_jax.config import options
from slam_jax.config.command_line import Command, parse
from slam_jax.config.options import Config
from slam_jax.parallel import runtime
from slam_jax.parallel.topology import Topology, check_compiler, parse_topology
from slam_jax.recipes.memory import (
    PREPARED,
    PREPARED_TEXTS,
    check_batch,
    flops_per_sample,
    need_of,
)
from slam_jax.recipes.open_teacher import open_teacher
from slam_jax.recipes.plan import GIB, find_fitting, flags_between, size, table
from slam_jax.recipes.plan_for_tpus import plan_for


def parse_mesh(text: str) -> options.Mesh:
    """The mesh of "data=8,fsdp=1".

    Raises:
      InputError: it is something else.
    """
    found = re.fullmatch(r"data=(\d{1,6})(?:,fsdp=(\d{1,6}))?", text)
    numbers = [int(number or 1) for number in found.groups()] if found else [0]
    if 0 in numbers:
        raise InputError(f"--mesh {text}: expected data=N or data=N,fsdp=M, whole numbers above 0")
    return options.Mesh(*numbers)


def parse_memory(text: str) -> float:
    """Bytes of a number of GiB.

    Raises:
      InputError: it is no number above 0.
    """
    try:
        memory = float(text)
    except ValueError:
        memory = math.nan
    if not 0 < memory < math.inf:
        raise InputError(f"--memory {text}: expected a device's memory in GiB, as 80")
    return memory * GIB


def read_command(argv: list[str], text_embeddings: bool = False) -> Command:
    """A command line of slam-jax train; the data may be left open.

    Args:
      argv: its arguments.
      text_embeddings: whether data that are left open have the prompts' embeddings.

    Raises:
      InputError: as `parse`, or the data are named and `text_embeddings` asked for.
    """
    try:
        command = parse(argv)
    except InputError as error:
        cause = error.__cause__
        if not (isinstance(cause, OptionError) and (cause.key, cause.value) == ("source", "")):
            raise
        source = PREPARED_TEXTS if text_embeddings else PREPARED
        return parse([*argv, f"--config.data.source={source}"])
    if text_embeddings:
        raise InputError(
            f"--text-embeddings: is for data that are not there yet; config.data.source = "
            f"{command.config.data.source!r} says what there is"
        )
    return command


def with_mesh(config: Config, mesh: options.Mesh | None, topology: Topology | None) -> Config:
    """The config on that mesh; with None on its own, over the topology or the devices here.

    Raises:
      InputError: it does not fit them.
    """
    if mesh and topology and mesh.data * mesh.fsdp != topology.size:
        raise InputError(
            f"--mesh data={mesh.data},fsdp={mesh.fsdp}: {mesh.data * mesh.fsdp} devices, but "
            f"{topology} has {topology.size}"
        )
    if mesh is None:
        count, mesh = topology.size if topology else len(runtime.devices()), config.mesh
        if mesh.data == -1:
            mesh = replace(mesh, data=max(count // mesh.fsdp, 1))
        if mesh.data * mesh.fsdp > count:
            raise InputError(
                f"config.mesh: data = {mesh.data} times fsdp = {mesh.fsdp}, but {count} devices "
                f"are {f'in {topology}' if topology else 'here'}; give --mesh to plan for others"
            )
    return replace(config, mesh=mesh)


def work(arguments: argparse.Namespace, rest: list[str]) -> bool:
    """Prints the plan; returns whether the run fits, as far as is known.

    Raises:
      InputError: an argument, the config, the teacher or the devices are not what is expected.
    """
    mesh = None if arguments.mesh is None else parse_mesh(arguments.mesh)
    memory = None if arguments.memory is None else parse_memory(arguments.memory)
    topology = None if arguments.topology is None else parse_topology(arguments.topology)
    if topology:
        check_compiler()
        if memory or arguments.no_compile:
            option = "--memory" if memory else "--no-compile"
            raise InputError(f"{option}: not with --topology, whose compiler knows the memory")
    command = read_command(rest, arguments.text_embeddings)
    config = command.config
    if mesh is not None and not topology:
        make_up_devices(mesh.data * mesh.fsdp)
    config = with_mesh(config, mesh, topology)
    family = open_teacher(config, command.workdir, weights=False)
    check_batch(config)
    if topology:
        return plan_for(topology, config, command.workdir, family)
    compiling = not arguments.no_compile
    if compiling:
        print("compiling: up to five minutes for SD 1.5 on two cores", file=sys.stderr)
    need = need_of(config, family, compiling)
    print(table(config, need))
    print(f"{flops_per_sample(config, family) / 1e12:.4g} TFLOP per sample (XLA's count)")
    if memory is None:
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if memory is None:
        print("give --memory GiB to compare with a device's")
        return True
    if need.total <= memory:
        print(f"fits into {size(memory)}")
        return True
    print(f"does not fit into {size(memory)}; looking for what does", file=sys.stderr)
    found = find_fitting(config, family, memory, lambda c: need_of(c, family, compiling).total)
    if found is None:
        print(f"does not fit into {size(memory)}, nor does anything else on as many devices")
    else:
        print(f"does not fit into {size(memory)}; this does:\n  {flags_between(config, found)}")
    return False


def make_up_devices(count: int) -> None:
    """Lets the CPU pass for so many devices, if JAX has not looked for devices yet."""
    with contextlib.suppress(RuntimeError):  # what there is may be enough, and is counted later
        jax.config.update("jax_num_cpu_devices", count)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    what = "Say what a run will need; other options are those of slam-jax train."
    parser = parser_of("plan", what, allow_abbrev=False)
    add = parser.add_argument
    add("--mesh", help="devices, as data=8,fsdp=1; None: the config's, on those here")
    add("--topology", help="TPUs that are not here, as v5e:2x4; needs libtpu")
    add("--memory", help="of a device, in GiB; None: what this machine's have")
    add("--text-embeddings", action="store_true", help="plan for data prepared with this option")
    add("--no-compile", action="store_true", help="count activations instead: quick, and less sure")
    runtime.configure()
    with refusals():
        sys.exit(0 if work(*parser.parse_known_args(argv)) else 1)
