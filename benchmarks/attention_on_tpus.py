"""What the compiler for TPUs makes of an attention, without a TPU: by XLA, by XLA with more
features of a head, all zeros, and by the kernel of `auto`. It takes libtpu and a minute.

    PYTHONPATH=. python benchmarks/attention_on_tpus.py

"cycles" is the compiler's own estimate of everything but the kernel, of which it makes none. Writes
attention_TOPOLOGY.json and .md into benchmarks/results/ (or --out).
"""

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from result import FOLDER, made_by, write
from table import markdown

from slam_jax.base.errors import InputError
from slam_jax.models.attention import attention
from slam_jax.parallel import runtime
from slam_jax.parallel.sharding import make_mesh
from slam_jax.parallel.topology import ENVIRONMENT, check_compiler, parse_topology

TOPOLOGY = "v5e:1x1"
BATCH, HEADS = 1, 8
# Tokens and features of a head: SD 1.5 at 512 pixels, SDXL.
SHAPES = ((4096, 40), (1024, 80), (4096, 64))
WHAT = ("million cycles", "temporary")  # of the table


def filled(features: int) -> Callable[..., jax.Array]:
    """XLA's attention with so many features of a head."""

    def attend(q, k, v):
        width = q.shape[-1]
        q = q * math.sqrt(features / width)  # it divides by more
        arrays = (jnp.pad(x, [(0, 0)] * 3 + [(0, features - width)]) for x in (q, k, v))
        return attention(*arrays, implementation="xla")[..., :width]

    return attend


def variants(features: int) -> dict[str, Callable[..., jax.Array]]:
    """By name, for heads of so many features."""
    return {
        "xla": partial(attention, implementation="xla"),
        **{f"xla, {width} features": filled(width) for width in (64, 128) if width > features},
        "splash": partial(attention, implementation="splash"),
    }


def compiled(attend: Callable[..., jax.Array], tokens: int, features: int, backward: bool) -> Any:
    """The program, of one device.

    Args:
      attend: queries, keys, values -> outputs.
      tokens, features: of each head.
      backward: with the gradient.
    """
    here = NamedSharding(make_mesh(1, 1, parse_topology(TOPOLOGY).devices()[:1]), PartitionSpec())
    shape = BATCH, tokens, HEADS, features
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=here)

    def gradient(q, k, v):
        out, pullback = jax.vjp(attend, q, k, v)
        return pullback(out)

    return jax.jit(gradient if backward else attend).lower(x, x, x).compile()


def estimate(text: str) -> int:
    """Cycles of a program without loops, as its compiler sees them."""
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))


def rows() -> list[dict[str, Any]]:
    """Of each shape and variant, forward and with the gradient."""
    found = []
    for tokens, features in SHAPES:
        for name, attend in variants(features).items():
            row: dict[str, Any] = {"tokens": tokens, "features": features, "variant": name}
            for direction, backward in (("forward", False), ("backward", True)):
                program = compiled(attend, tokens, features, backward)
                row[direction] = {
                    "cycles": estimate(program.as_text()),
                    "temporary": program.memory_analysis().temp_size_in_bytes,
                }
            found.append(row)
    return found


def table(report: dict[str, Any]) -> str:
    """In Markdown."""
    head = ["tokens", "head dim", "", *(f"{d}, {w}" for d in ("forward", "backward") for w in WHAT)]
    lines = []
    for row in report["rows"]:
        cells = [str(row["tokens"]), str(row["features"]), row["variant"]]
        for direction in ("forward", "backward"):
            found = row[direction]
            cycles = f"{found['cycles'] / 1e6:.2f}"
            cells.append(f"{cycles} and the kernel" if row["variant"] == "splash" else cycles)
            cells.append(f"{found['temporary'] / 2**20:.0f} MiB")
        lines.append(cells)
    return markdown(head, lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result")
    arguments = parser.parse_args(argv)
    try:
        check_compiler()
    except InputError as error:
        parser.exit(1, f"error: {error}\n")
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    runtime.configure()
    report = {
        **made_by("attention_on_tpus.py", argv, ("jax", "libtpu")),
        "topology": TOPOLOGY,
        "batch": BATCH,
        "heads": HEADS,
        "rows": rows(),
    }
    name = f"attention_{TOPOLOGY.replace(':', '_')}"
    write(report, arguments.out / f"{name}.json")
    (arguments.out / f"{name}.md").write_text(table(report))


if __name__ == "__main__":
    main()
