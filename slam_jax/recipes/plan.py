"""What to change where a run does not fit into its devices, and the plan in words."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

from slam_jax.config import options
from slam_jax.config.options import Config
from slam_jax.families.family import Family
from slam_jax.models.remat import REMAT
from slam_jax.recipes.memory import (
    PREPARED,
    PREPARED_TEXTS,
    Need,
    held_bytes,
    rows_of,
)

GIB = 2**30


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
    flags = [f"--config.mesh.{name}={getattr(after.mesh, name)}" for name in ("data", "fsdp")]
    for name in ("remat", "accumulation"):
        if (value := getattr(after.training, name)) != getattr(before.training, name):
            flags.append(f"--config.training.{name}={value}")
    return " ".join(flags)


def size(count: float) -> str:
    """Bytes in words."""
    unit, name = (GIB, "GiB") if count >= GIB / 10 else (2**20, "MiB")
    return f"{count / unit:.2f} {name}"


def table(config: Config, need: Need, name_of_sum: str = "sum") -> str:
    """The need as rows of text."""
    mesh, training = config.mesh, config.training
    rows = [
        ("", "all", "each device"),
        *((name, size(total), size(here)) for name, (total, here) in need.parts.items()),
        ("activations, copies", "", size(need.temporary)),
        (name_of_sum, "", size(need.total)),
    ]
    devices, parts = mesh.data * mesh.fsdp, training.accumulation
    head = (
        f"{devices} device{'s' * (devices > 1)}, data={mesh.data} x fsdp={mesh.fsdp}; batch "
        f"{training.batch_size}, of which each device has {rows_of(config)} at a time"
        f"{f', in {parts} parts' * (parts > 1)}; remat {training.remat}"
    )
    lines = (f"{name:28}{total:>14}{here:>14}" for name, total, here in rows)
    assumed = config.data.source in (PREPARED, PREPARED_TEXTS)
    data = f"data: assumed to be {config.data.source}" if assumed else ""
    note = f"activations, copies: {need.source}"
    return "\n".join(line for line in (head, data, "", *lines, "", note) if line or line == "")


def find_fitting(
    config: Config, family: Family, memory: float, bytes_of: Callable[[Config], float]
) -> Config | None:
    """The first of the easier configs that fits; says on stderr what each needs.

    Args:
      config: with the mesh in numbers.
      family: the teacher.
      memory: a device's, in bytes.
      bytes_of: what a config needs of it.
    """
    mesh, held = config.mesh, {}
    devices = mesh.data * mesh.fsdp
    for fsdp in range(mesh.fsdp, devices + 1):
        if devices % fsdp == 0:
            split = replace(config, mesh=options.Mesh(devices // fsdp, fsdp))
            held[fsdp] = held_bytes(split, family)
    candidates = list(easier(config, held, memory))
    for number, candidate in enumerate(candidates, 1):
        flags = flags_between(config, candidate)
        need = bytes_of(candidate)
        print(f"{number}/{len(candidates)} {size(need):>12} with {flags}", file=sys.stderr)
        if need <= memory:
            return candidate
    return None
