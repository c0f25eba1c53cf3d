"""Whether a run that is killed again and again ends in the same bits as one that is not.

    PYTHONPATH=. python benchmarks/kill.py

Distils a small digits teacher on two CPU devices (fsdp=2), once in peace, and once where the
process and all that it started get SIGKILL, 27 times (or --times 25 and two), each time started
again with --resume. The moments are random, each aimed at a phase:

start    anywhere from the command to the first step: imports, restoring, the first programs
compile  while the training step is compiled (these starts have no compilation cache)
step     between two steps
save     up to 0.2 s after the half-written folder of a checkpoint appears
end      after the last step: the last checkpoint, the report, the export

Counted is the phase that a kill really hit. The exported arrays and every row of metrics.jsonl, but
for its speed, must be equal; otherwise the exit code is 1. Results are in kill.json in
benchmarks/results/ (or --out).
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from result import FOLDER, made_by, write

from slam_jax.formats.safetensors import load_arrays
from slam_jax.training.checkpoint_files import steps_in

ROOT = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "orbax-checkpoint", "tensorstore", "grain", "numpy")
AIMS = {"start": 6, "compile": 4, "step": 6, "save": 9}  # and twice at the end
STEPS, EVERY = 150, 3  # so many that the run is not over before its last kills
TIMEOUT = 900  # seconds for one start
OPTIONS = (
    "--config.teacher.network.block_out_channels=(8,)",
    "--config.teacher.training.steps=6",
    "--config.teacher.training.batch_size=16",
    "--config.teacher.training.optimizer.warmup_steps=2",
    "--config.training.batch_size=16",
    "--config.training.optimizer.warmup_steps=5",
    "--config.training.sample_every=0",
    "--config.training.log_every=1",
    "--config.evaluation.samples=20",
    "--config.evaluation.teacher_steps=(2,)",
    "--config.evaluation.student_steps=(1,)",
    "--config.mesh.fsdp=2",
)


@dataclass(frozen=True)
class Run:
    """A run that can be started again and again.

    Attributes:
      workdir: its folder.
      options: of the command line, but for workdir and resume.
      steps: how many it takes.
      cache: of compiled programs.
    """

    workdir: Path
    options: tuple[str, ...]
    steps: int
    cache: Path

    @property
    def log(self) -> Path:
        """What its last start said."""
        return self.workdir.with_suffix(".log")

    @contextmanager
    def started(self, caching: bool = True) -> Iterator[subprocess.Popen]:
        """Starts it, in a group of processes of its own that is gone afterwards."""
        command = [sys.executable, "-m", "slam_jax", "train", "--config", "digits"]
        command += [*self.options, "--workdir", str(self.workdir), "--resume"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        if caching:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(self.cache)
        with self.log.open("w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def finish(self) -> None:
        """Starts it and lets it be.

        Raises:
          RuntimeError: it fails.
        """
        with self.started() as process:
            process.wait(TIMEOUT)
        if process.returncode:
            raise RuntimeError(f"a start without a kill failed:\n{self.log.read_text()}")

    def half_written(self) -> set[Path]:
        """Folders of checkpoints that are not complete."""
        return set((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

    def is_compiling(self) -> bool:
        """Whether it has come to its first step."""
        return "compiling the first step" in self.log.read_text()

    def rows(self) -> list[dict]:
        """The metrics of each step, in the order of the file, without what measures time."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in rows]


def strike(run: Run, aim: str, chance: random.Random, seconds: dict[str, float]) -> str | None:
    """Starts the run and kills it.

    Args:
      run: what is killed.
      aim: the phase.
      chance: decides the moment.
      seconds: how long "start" and "compile" take, about; "start" is measured anew.

    Returns:
      The phase that was hit; None where the run ended before.

    Raises:
      RuntimeError: the run failed by itself.
    """
    first = max(steps_in(run.workdir / "checkpoints"), default=0)
    stale = {(path, path.stat().st_mtime_ns) for path in run.half_written()}
    target = min(first + chance.randint(1, 12), run.steps)  # step
    saves, delay = chance.randint(1, 3), chance.random()

    def new_saves() -> set[Path]:
        found = set()
        for path in run.half_written():
            try:
                found |= {path} if (path, path.stat().st_mtime_ns) not in stale else set()
            except FileNotFoundError:  # has just got its name
                found.add(path)
        return found

    seen: set[Path] = set()

    def is_there() -> bool:
        """Whether the run has come to where the delay begins."""
        if aim == "start" or first == run.steps:  # then nothing tells of compiling
            return True
        if aim == "compile" or not run.is_compiling():  # which drops old rows before
            return run.is_compiling()
        if aim == "save":
            seen.update(new_saves())
            return len(seen) >= saves
        last = max((row["step"] for row in run.rows()), default=0)
        return last >= run.steps if aim == "end" else last >= target and not new_saves()

    with run.started(caching=aim != "compile") as process:
        began, compiling = time.monotonic(), False
        while process.poll() is None and not is_there():
            elapsed = time.monotonic() - began
            if elapsed > TIMEOUT:
                raise RuntimeError(f"a start took too long:\n{run.log.read_text()}")
            if not compiling and (compiling := run.is_compiling()):
                seconds["start"] = elapsed
            time.sleep(0.002 if compiling else 0.05)
        after_the_end = seconds["start"] if first == run.steps else 5.0
        longest = {**seconds, "step": 0.0, "save": 0.2, "end": after_the_end}[aim]
        time.sleep(delay * longest)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the run failed by itself:\n{run.log.read_text()}")
    if not run.is_compiling():
        return "end" if first == run.steps else "start"
    last = max((row["step"] for row in run.rows()), default=0)
    if new_saves():
        return "save"
    return "end" if last == run.steps else "step" if last > first else "compile"


def compare(killed: Run, peaceful: Run) -> dict[str, bool]:
    """What of the two runs is equal, bit by bit."""
    ours, theirs = (
        load_arrays(run.workdir / "export/flax_params.safetensors") for run in (killed, peaceful)
    )
    arrays = ours.keys() == theirs.keys() and all(
        ours[key].dtype == theirs[key].dtype
        and ours[key].shape == theirs[key].shape
        and ours[key].tobytes() == theirs[key].tobytes()
        for key in theirs
    )
    rows = killed.rows()
    return {
        "arrays_equal": bool(theirs) and arrays,
        "metrics_equal": rows == peaceful.rows()
        and [row["step"] for row in rows] == list(range(1, killed.steps + 1)),
        "weights_are_finite": all(bool(np.isfinite(array).all()) for array in theirs.values()),
    }


def kill_and_compare(
    folder: Path, aims: list[str], steps: int, every: int, cache: Path, seed: int = 0
) -> dict:
    """Both runs, and what became of them.

    Args:
      folder: for the runs.
      aims: the phase that each kill is aimed at.
      steps: of the distillation.
      every: how many steps to a checkpoint.
      cache: of compiled programs.
      seed: of the moments.

    Raises:
      RuntimeError: a start fails other than by a kill.
    """
    chance, began = random.Random(seed), time.perf_counter()
    options = (
        *OPTIONS,
        f"--config.training.steps={steps}",
        f"--config.training.checkpoint_every={every}",
    )
    peaceful = Run(folder / "peaceful", options, steps, cache)
    peaceful.finish()
    teacher = f"--config.teacher.path={peaceful.workdir / 'teacher'}"
    killed = Run(folder / "killed", (*options, teacher), steps, cache)
    seconds, hits, ended_before = {"start": 8.0, "compile": 10.0}, [], 0
    for aim in aims:
        hit = strike(killed, aim, chance, seconds)
        latest = max(steps_in(killed.workdir / "checkpoints"), default=0)
        print(f"aimed at {aim}, hit {hit}; newest checkpoint {latest}", flush=True)
        hits += [hit] if hit else []
        ended_before += hit is None
    killed.finish()
    return {
        "kills": len(hits),
        "hit": dict(Counter(hits)),
        "restarts": len(hits),
        "ended_before_the_kill": ended_before,
        "steps": steps,
        "checkpoint_every": every,
        **compare(killed, peaceful),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--aims", nargs="+", choices=AIMS, help="of the kills; default: 25 and two")
    parser.add_argument("--times", type=int, default=1, help="as many kills and steps")
    parser.add_argument("--steps", type=int, help=f"of the run; default: {STEPS} x --times")
    parser.add_argument("--cache", type=Path, help="of compiled programs; default: a new one")
    parser.add_argument("--folder", type=Path, help="for the runs; default: a temporary one")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(argv)
    steps = options.steps or STEPS * options.times
    aims = options.aims or [aim for aim in AIMS for _ in range(AIMS[aim] * options.times)]
    if not options.aims:
        random.Random(options.seed).shuffle(aims)
        aims += ["end", "end"]
    report = made_by("kill.py", argv, PACKAGES)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="kill-") as folder:
        path = Path(folder)
        cache = options.cache or path / "cache"
        report |= kill_and_compare(path, aims, steps, EVERY, cache, options.seed)
    write(report, options.out / "kill.json")
    sys.exit(0 if report["arrays_equal"] and report["metrics_equal"] else 1)


if __name__ == "__main__":
    main()
