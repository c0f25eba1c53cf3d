"""From the start of a process to its first training step, with and without compiled programs.

    PYTHONPATH=. python benchmarks/starts.py tiny 8 float32

is such a process: it prints the seconds of its first training step by what they went to.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ours
import timing
from shapes import make_batch, make_model

from slam_jax.parallel import runtime

STARTS = 3  # of each kind


def first_steps(run: Any) -> dict[str, Any]:
    """Starts of a process that trains one step: some that keep what they compile, each in a new
    folder, then as many that find it. For each mark median, lowest and highest."""
    count = 1 if run.repeats <= 2 else STARTS
    with tempfile.TemporaryDirectory(prefix="compiled-") as folder:
        caches = [Path(folder) / str(i) for i in range(count)]
        for cache in caches:
            cache.mkdir()
        seconds = {
            "cold": [_start(run, cache) for cache in caches],
            "with_cache": [_start(run, caches[0]) for _ in range(count)],
        }
        files = len(list(caches[0].iterdir()))
    found = {
        name: {mark: timing.summary([s[mark] for s in several]) for mark in several[0]}
        for name, several in seconds.items()
    }
    return {"batch": run.batch, "files_kept": files, **found}


def _start(run: Any, cache: Path) -> dict[str, float]:
    """Seconds of one process, by what they went to."""
    script = [sys.executable, __file__, run.shapes, str(run.batch), run.dtype]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    began = time.perf_counter()
    done = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    whole = time.perf_counter() - began
    seconds = json.loads(done.stdout.splitlines()[-1])
    rest = whole - sum(seconds.values())
    return {"imports_and_exit_s": rest, **seconds, "whole_process_s": whole}


def one_step(shapes: str, batch: int, dtype: str) -> dict[str, float]:
    """Seconds until a training step has run in this process, by what they went to."""
    marks = [("start", time.perf_counter())]
    model = make_model(shapes)
    rows = ours.batch_for(make_batch(model, batch), with_pictures=False)
    marks.append(("random_weights", time.perf_counter()))
    step, *arguments = ours.train_arguments(model, rows, ours.Setup(dtype=dtype))
    marks.append(("state_on_device", time.perf_counter()))
    lowered = step.lower(*arguments)
    marks.append(("trace_and_lower", time.perf_counter()))
    compiled = lowered.compile()
    marks.append(("compile", time.perf_counter()))
    timing.wait(compiled(*arguments))
    marks.append(("first_step", time.perf_counter()))
    pairs = zip(marks, marks[1:], strict=False)
    return {f"{name}_s": end - start for (_, start), (name, end) in pairs}


if __name__ == "__main__":
    runtime.configure()
    print(json.dumps(one_step(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
