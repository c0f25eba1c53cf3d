"""The plan of a run on TPUs that are not here: what their compiler makes of the training step."""

import sys
from functools import partial
from pathlib import Path

import jax

from slam_jax.config.options import Config
from slam_jax.families.family import Family
from slam_jax.parallel.program import Program
from slam_jax.parallel.sharding import make_mesh
from slam_jax.parallel.topology import Devices, DoesNotFit, Topology, compile_apart
from slam_jax.recipes.memory import Need, held_bytes, lower, parts_of
from slam_jax.recipes.open_teacher import open_teacher
from slam_jax.recipes.plan import find_fitting, flags_between, size, table


def lower_step(config: Config, workdir: Path, devices: Devices) -> jax.stages.Lowered:
    """The training step for these devices.

    Args:
      config: with a mesh of as many.
      workdir: of the run; a teacher that is trained there is looked for in it.
      devices: as a topology has them.

    Raises:
      InputError: as `open_teacher`.
    """
    family = open_teacher(config, workdir, weights=False)
    return lower(config, family, make_mesh(config.mesh.data, config.mesh.fsdp, devices))


def program_of(config: Config, workdir: Path, family: Family, topology: Topology) -> Program:
    """The compiled step.

    Raises:
      DoesNotFit: it needs more memory than there is; it is not compiled where the state alone does.
      BackendError: as `compile_apart`.
    """
    if (held := held_bytes(config, family)) > topology.memory:
        raise DoesNotFit(f"state and gradients alone take {size(held)}", held)
    return compile_apart(topology, partial(lower_step, config, workdir))


def described(program: Program) -> str:
    """Memory, traffic and products of a program, in rows of text."""
    memory = {
        "arguments": program.arguments,
        "results beside them": program.results,
        "temporary": program.temporary,
        "code": program.code,
        "sum, which has to fit": program.total,
    }
    traffic = [
        f"{kind:18}{dtype:8}{count:>5} times{size(total):>14}"
        for kind, dtype, count, total in program.traffic
    ]
    whole = []
    if program.whole is not None:
        whole = [f"{'gathered arrays at a time':28}{size(program.whole):>14}"]
    products = ", ".join(f"{count} of {dtypes}" for dtypes, count in program.products.items())
    return "\n".join(
        (
            "the compiled step on each device, arrays padded as there:",
            *(f"{name:28}{size(count):>14}" for name, count in memory.items()),
            "",
            "of what a loop repeats (accumulation, substeps of a solver) one round is counted in",
            "traffic, in bytes of whole arrays:",
            *(traffic or ["none"]),
            *whole,
            "",
            f"convolutions and matrix products: {products}",
            f"{program.flops / 1e12:.4g} TFLOP on each device (XLA's count, of its own)",
        )
    )


def plan_for(topology: Topology, config: Config, workdir: Path, family: Family) -> bool:
    """Prints the plan; returns whether the run fits.

    Args:
      topology: the TPUs.
      config: with a mesh over them.
      workdir: of the run.
      family: the teacher.

    Raises:
      BackendError: as `compile_apart`.
    """
    print(f"compiling for {topology}: minutes; long for full sizes", file=sys.stderr)
    parts, memory = parts_of(config, family), topology.memory
    try:
        program = program_of(config, workdir, family, topology)
    except DoesNotFit as error:
        refused = str(error)
    else:
        temporary = max(program.temporary - parts["gradients"][1], 0)
        need = Need(parts, temporary, f"of XLA for {topology}")
        print(table(config, need, "sum without padding"))
        print(f"\n{described(program)}\n")
        print(f"fits: XLA compiled it for {topology}, with {size(memory)} on each device")
        return True
    print(f"does not fit into {topology}: {refused}; looking for what does", file=sys.stderr)

    def bytes_of(changed: Config) -> float:
        try:
            return program_of(changed, workdir, family, topology).total
        except DoesNotFit as error:  # which may be for want of what the TPU keeps for itself
            return max(error.need, memory + 1)

    found = find_fitting(config, family, memory, bytes_of)
    if found is None:
        print(f"does not fit into {topology}, nor does anything else on as many devices")
    else:
        print(f"does not fit into {topology}; this does:\n  {flags_between(config, found)}")
    return False
