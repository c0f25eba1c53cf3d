"""How fast training steps, sampler and VAE are, beside the same in torch.

    PYTHONPATH=. python benchmarks/speed.py --shapes tiny
    PYTHONPATH=. python benchmarks/speed.py --shapes sd15 --only train_step --peers tuned

train_step  samples a second; the peers are the authors' step and a tuned one
sampler     milliseconds for 1, 2 and 4 steps; the peer is diffusers' own pipeline
vae         milliseconds for decoding latents
compile     seconds from the start of a process to its first training step, without and with the
            programs that an earlier start kept; three starts of each
loader      prepared latents read, in samples a second

on whatever JAX computes with: float32 on a CPU, bfloat16 on a GPU. Every subject gets the same
weights, inputs and random numbers as ours first, and is timed only if it computes the same; in half
precision that is checked in float32 too. On a CPU subjects take turns; on a GPU each training step
runs alone, as all at once do not fit. A peer that fails is in the result with the reason. Peers
need torch, diffusers and transformers: `pip install torch diffusers transformers`.

Results go to speed_<shapes>_<device>.json in benchmarks/results/ (or --out) after each part; parts
that are there stay. All such files together make
speed.md, and with those of switches.py fast.md.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import result
import table
from race import ParityError
from shapes import SHAPES

from slam_jax.parallel import runtime

PEERS = ("authors", "tuned", "tuned_compiled", "stock", "stock_compiled")
PEER_LIBRARIES = ("torch", "diffusers", "transformers")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", *PEER_LIBRARIES)


@dataclass(frozen=True)
class Run:
    """What is measured.

    Attributes:
      shapes: a name in SHAPES.
      batch: rows of a training step.
      sample_batches: pictures at a time.
      steps: of the sampler.
      dtype: of the networks.
      peers: of PEERS.
      compile_mode: of torch.compile.
      repeats: timed calls.
      calls: training steps in a timed call.
      warm_seconds: before timing.
      in_float32: whether half precision is checked in float32 first.
      turns: whether subjects take turns.
    """

    shapes: str
    batch: int
    sample_batches: tuple[int, ...]
    steps: tuple[int, ...]
    dtype: str
    peers: tuple[str, ...]
    compile_mode: str
    repeats: int
    calls: int
    warm_seconds: float
    in_float32: bool
    turns: bool


def main(argv: list[str] | None = None) -> None:
    from parts import PARTS

    options = parse(argv, tuple(PARTS))
    # Torch gets what jax leaves of a GPU's memory; both must be said before they start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("OMP_NUM_THREADS", str(result.threads()))
    runtime.configure()
    runtime.probe()
    run = run_of(options)
    path = options.out / f"speed_{run.shapes}_{result.device_slug()}.json"
    header = {
        **result.made_by("speed.py", argv, result.installed(PACKAGES)),
        "device": result.device(),
        "threads": {"torch": result.threads(), "xla": result.threads()},
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }
    for name in options.only:
        add(path, name, header, PARTS[name], run)
    table.write(options.out)
    print((options.out / "speed.md").read_text())


def add(
    path: Path, name: str, header: dict[str, Any], measure: Callable[[Run], dict], run: Run
) -> None:
    """Measures one part and writes it into the result, beside those that are there.

    Raises:
      SystemExit: a subject does not compute the same.
    """
    print(f"== {name} of {run.shapes}", file=sys.stderr, flush=True)
    try:
        found = measure(run)
    except ParityError as error:
        sys.exit(f"error: {name}: {error}")
    report = json.loads(path.read_text()) if path.exists() else {}
    report |= {"shapes": run.shapes, "device": header["device"]}
    made = {**header, "dtype": run.dtype, "load_average_after": os.getloadavg()[0]}
    report.setdefault("parts", {})[name] = {**found, "made_by": made}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, default=as_json) + "\n")


def as_json(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value)} in a result")


def parse(argv: list[str] | None, names: tuple[str, ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    several = dict(type=lambda text: text.split(","))
    parser.add_argument("--shapes", choices=SHAPES, default="tiny")
    parser.add_argument("--only", **several, default=list(names), help="parts, with commas")
    parser.add_argument("--peers", **several, help=f"of {', '.join(PEERS)}, with commas")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--compile", action="store_true", help="compiled peers too, on a CPU")
    parser.add_argument("--compile-mode", help="of torch.compile")
    parser.add_argument("--batch", type=int, help="rows of a training step")
    parser.add_argument("--sample-batches", **several, help="pictures at a time, with commas")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=result.positive, default=10)
    parser.add_argument("--warm-seconds", type=float, help="before timing")
    parser.add_argument(
        "--no-float32",
        action="store_true",
        help="half precision is compared as it is, and not in float32 too: a compilation less",
    )
    parser.add_argument("--quick", action="store_true", help="little of everything, to try it")
    parser.add_argument("--out", type=Path, default=result.FOLDER, help="folder")
    options = parser.parse_args(argv)
    for option, given, valid in (
        ("--only", options.only, names),
        ("--peers", options.peers or (), PEERS),
    ):
        if wrong := [name for name in given if name not in valid]:
            parser.error(f"{option} {','.join(wrong)}: expected {', '.join(valid)}")
    return options


def run_of(options: argparse.Namespace) -> Run:
    """The options with what follows from size and device."""
    import timing

    shapes, device = SHAPES[options.shapes], result.device()["platform"]
    warm_seconds = options.warm_seconds
    if warm_seconds is None:
        warm_seconds = timing.seconds_to_warm(device)
    on_cpu, quick = device == "cpu", options.quick
    peers = options.peers or [p for p in PEERS if not (on_cpu or quick) or "compiled" not in p]
    if options.compile:
        peers = list(dict.fromkeys([*peers, *(p for p in PEERS if "compiled" in p)]))
    lacking = [name for name in PEER_LIBRARIES if name not in result.installed(PEER_LIBRARIES)]
    why = f"pip install {' '.join(lacking)}" if lacking else _why_not_torch(device)
    if why and not options.no_peers:
        print(f"note: without {', '.join(peers)}: {why}", file=sys.stderr)
    batches = options.sample_batches or ((1,) if quick else shapes.sample_batches)
    return Run(
        shapes=options.shapes,
        batch=options.batch or (2 if quick else shapes.train_batch),
        sample_batches=tuple(map(int, batches)),
        steps=(2,) if quick else (1, 2, 4),
        dtype=options.dtype or ("float32" if on_cpu else "bfloat16"),
        peers=() if options.no_peers or why else tuple(peers),
        compile_mode=options.compile_mode or "default",
        repeats=2 if quick else options.repeats,
        calls=1 if on_cpu or quick else 10,
        warm_seconds=0 if quick else warm_seconds,
        in_float32=not options.no_float32,
        turns=on_cpu,
    )


def _why_not_torch(platform: str) -> str:
    """Why torch cannot compute on jax's device; empty if it can."""
    if platform == "cpu":
        return ""
    import torch

    if platform == "gpu" and torch.cuda.is_available():
        return ""
    return f"torch does not see the {platform.upper()} that jax computes on"


if __name__ == "__main__":
    main()
