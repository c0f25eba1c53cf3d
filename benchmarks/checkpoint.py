"""How long saving a checkpoint keeps the training loop waiting.

    PYTHONPATH=. python benchmarks/checkpoint.py

For a state of 25 MB and one of 1 GB (float32, 700 arrays): seconds until `Checkpoints.save`
returns, until the checkpoint is complete, until the step after it is done, and until a synchronous
save by orbax returns, in alternating turns; medians and all values go to checkpoint.json in
benchmarks/results/ (or --out). The step after a save donates the state, as in training. On a CPU
saving reads the state where it is, and that step has to take new memory: what that costs is in
`step_after_save` compared with `step`.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from result import FOLDER, made_by, write

from slam_jax.parallel import runtime
from slam_jax.training.checkpoint import Checkpoints

PACKAGES = ("jax", "jaxlib", "orbax-checkpoint", "tensorstore", "numpy")
ARRAYS = 700


def make_state(megabytes: float) -> dict[str, jax.Array]:
    """Normally distributed arrays as wide apart in size as those of a UNet, and a step."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1, 1000, ARRAYS)
    sizes = np.maximum(1, sizes / sizes.sum() * megabytes * 1e6 / 4).astype(int)
    state = {
        f"array_{i}": jax.numpy.asarray(rng.standard_normal(size, np.float32))
        for i, size in enumerate(sizes)
    }
    return {**state, "step": jax.numpy.int32(0)}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(folder: Path, megabytes: float, turns: int) -> dict:
    """Saves in turns, each into a folder of its own that goes before the next one."""
    state = make_state(megabytes)
    train = jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(train(state))

    step()
    found: dict[str, list[float]] = {}
    for turn in range(turns + 1):
        found_now = {"step": seconds(step)}
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
        with ocp.CheckpointManager(folder / "synchronous", options=options) as manager:
            save = ocp.args.StandardSave(state)
            found_now["synchronous_save"] = seconds(lambda: manager.save(1, args=save))  # noqa: B023
        shutil.rmtree(folder / "synchronous")
        start = time.perf_counter()
        with Checkpoints(folder / "ours", 1, {}) as checkpoints:
            start = time.perf_counter()
            checkpoints.save(1, state, {})
            found_now["save_returns"] = time.perf_counter() - start
            found_now["step_after_save"] = seconds(step)
        found_now["checkpoint_complete"] = time.perf_counter() - start
        shutil.rmtree(folder / "ours")
        os.sync()  # what is still to be written must not slow the next turn
        if turn:  # the first one warms up
            for name, value in found_now.items():
                found.setdefault(name, []).append(round(value, 4))
    medians = {name: round(statistics.median(values), 4) for name, values in found.items()}
    return {
        "bytes": sum(a.nbytes for a in jax.tree.leaves(state)),
        "arrays": len(jax.tree.leaves(state)),
        "median_seconds": medians,
        "save_returns_to_synchronous_save": round(
            medians["save_returns"] / medians["synchronous_save"], 4
        ),
        "seconds": found,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a new one")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[25, 1000])
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(argv)
    runtime.configure()
    report = made_by("checkpoint.py", argv, PACKAGES)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="checkpoint-") as folder:
        report["states"] = [measure(Path(folder), mb, options.turns) for mb in options.megabytes]
    write(report, options.out / "checkpoint.json")


if __name__ == "__main__":
    main()
