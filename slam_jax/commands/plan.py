"""Says what a run will need of each device, before anything is loaded, and what to change where
it does not fit.

slam-jax plan --config sd --mesh data=8,fsdp=1 --memory 80 [--config.KEY=VALUE]

Weights, state and gradients are counted from their shapes and the sharding rules, exactly. What a
step needs besides is what XLA sets aside for it: the step is compiled, for this machine's devices
where there are enough of them, else for CPU devices that are made up (at most two along "data";
more would make no difference to one of them). A CPU computes bfloat16 in float32, and each backend
orders a program in its own way: of a GPU or TPU that part is an estimate. With --no-compile it is
the sum of what the gradient keeps of the forward pass and of copies of weights: quick, but without
what an operation needs while it runs, and blind to what XLA merges.
"""

import argparse
import contextlib
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace

import jax

from slam_jax.base.errors import BackendError, InputError
from slam_jax.config import options
from slam_jax.config.command_line import Command, parse
from slam_jax.config.options import Config
from slam_jax.families.family import Family
from slam_jax.models.remat import REMAT
from slam_jax.parallel import runtime
from slam_jax.recipes.memory import (
    PREPARED,
    Need,
    check_batch,
    flops_per_sample,
    held_bytes,
    need_of,
    rows_of,
)
from slam_jax.recipes.open_teacher import open_teacher

GIB = 2**30


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


def read_command(argv: list[str]) -> Command:
    """A command line of slam-jax train; the data may be left open.

    Raises:
      InputError: as `parse`.
    """
    try:
        return parse(argv)
    except InputError as error:
        if not str(error).startswith("config.data.source = ''"):
            raise
        return parse([*argv, f"--config.data.source={PREPARED}"])


def with_mesh(config: Config, mesh: options.Mesh | None) -> Config:
    """The config on that mesh; with None on its own, over the devices that are here.

    Raises:
      InputError: its own does not fit them.
    """
    if mesh is None:
        count, mesh = len(runtime.devices()), config.mesh
        if mesh.data == -1:
            mesh = replace(mesh, data=max(count // mesh.fsdp, 1))
        if mesh.data * mesh.fsdp > count:
            raise InputError(
                f"config.mesh: data = {mesh.data} times fsdp = {mesh.fsdp}, but {count} devices "
                "are here; give --mesh to plan for others"
            )
    return replace(config, mesh=mesh)


def easier(config: Config, held: dict[int, int], memory: float) -> Iterator[Config]:
    """Configs of the same run on as many devices, each needing less memory than the one before.

    Where state takes half of the memory more devices share it; then the student's gradient computes
    again what is cheap; then a device takes fewer samples at a time; at last all of both.

    Args:
      config: with the mesh in numbers.
      held: for its fsdp and each larger one, the bytes that stay on a device.
      memory: a device's.
    """
    devices = config.mesh.data * config.mesh.fsdp
    fsdp = next((fsdp for fsdp in sorted(held) if held[fsdp] < memory / 2), max(held))
    if fsdp > config.mesh.fsdp:
        config = replace(config, mesh=options.Mesh(devices // fsdp, fsdp))
        yield config
    none, minimal, full = REMAT
    if config.training.remat == none:
        config = replace(config, training=replace(config.training, remat=minimal))
        yield config
    rows, before, last = rows_of(config), config.training.accumulation, 1
    for parts in range(2, rows + 1):
        if rows % parts == 0 and (parts >= 2 * last or parts == rows):
            training = replace(config.training, accumulation=before * parts)
            config, last = replace(config, training=training), parts
            yield config
    if config.training.remat == minimal:
        config = replace(config, training=replace(config.training, remat=full))
        yield config
    if max(held) > config.mesh.fsdp:
        yield replace(config, mesh=options.Mesh(devices // max(held), max(held)))


def flags_between(before: Config, after: Config) -> str:
    """What to add to a command line of the one for the other."""
    values = {
        "config.mesh.data": after.mesh.data,
        "config.mesh.fsdp": after.mesh.fsdp,
        "config.training.remat": after.training.remat,
        "config.training.accumulation": after.training.accumulation,
    }
    same = {
        "config.training.remat": before.training.remat,
        "config.training.accumulation": before.training.accumulation,
    }
    return " ".join(f"--{name}={v}" for name, v in values.items() if same.get(name) != v)


def size(count: float) -> str:
    """Bytes in words."""
    unit, name = (GIB, "GiB") if count >= GIB / 10 else (2**20, "MiB")
    return f"{count / unit:.2f} {name}"


def table(config: Config, need: Need) -> str:
    """The need as rows of text."""
    mesh, training = config.mesh, config.training
    rows = [
        ("", "all", "each device"),
        *((name, size(total), size(here)) for name, (total, here) in need.parts.items()),
        ("activations, copies", "", size(need.temporary)),
        ("sum", "", size(need.total)),
    ]
    head = (
        f"{mesh.data * mesh.fsdp} devices, data={mesh.data} x fsdp={mesh.fsdp}; batch "
        f"{training.batch_size}, of which each device has {rows_of(config)} at a time, in "
        f"{training.accumulation} parts; remat {training.remat}"
    )
    lines = (f"{name:28}{total:>14}{here:>14}" for name, total, here in rows)
    data = "data: assumed to be " + PREPARED if config.data.source == PREPARED else ""
    note = f"activations, copies: {need.source}"
    return "\n".join(line for line in (head, data, "", *lines, "", note) if line or line == "")


def find_fitting(config: Config, family: Family, memory: float, compiling: bool) -> Config | None:
    """The first of the easier configs that fits; says on stderr what each needs."""
    mesh, held = config.mesh, {}
    devices = mesh.data * mesh.fsdp
    for fsdp in range(mesh.fsdp, devices + 1):
        if devices % fsdp == 0:
            split = replace(config, mesh=options.Mesh(devices // fsdp, fsdp))
            held[fsdp] = held_bytes(split, family)
    candidates = list(easier(config, held, memory))
    for number, candidate in enumerate(candidates, 1):
        flags = flags_between(config, candidate)
        need = need_of(candidate, family, compiling)
        print(f"{number}/{len(candidates)} {size(need.total):>12} with {flags}", file=sys.stderr)
        if need.total <= memory:
            return candidate
    return None


def run(arguments: argparse.Namespace, rest: list[str]) -> bool:
    """Prints the plan; returns whether the run fits, as far as is known.

    Raises:
      InputError: an argument, the config, the teacher or the devices are not what is expected.
    """
    mesh = parse_mesh(arguments.mesh) if arguments.mesh else None
    memory = parse_memory(arguments.memory) if arguments.memory else None
    command = read_command(rest)
    config = command.config
    if mesh is not None:
        make_up_devices(mesh.data * mesh.fsdp)
    config = with_mesh(config, mesh)
    family = open_teacher(config, command.workdir, weights=False)
    check_batch(config)
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
    found = find_fitting(config, family, memory, compiling)
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
    parser = argparse.ArgumentParser(
        prog="slam-jax plan",
        description="Say what a run will need; other options are those of slam-jax train.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--mesh", default="", help="devices, as data=8,fsdp=1; default: the config's, on those here"
    )
    add("--memory", default="", help="of a device, in GiB; default: what this machine's have")
    add("--no-compile", action="store_true", help="count activations instead: quick, and less sure")
    runtime.configure()
    try:
        fits = run(*parser.parse_known_args(argv))
    except (InputError, BackendError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if fits else 1)


if __name__ == "__main__":
    main()
