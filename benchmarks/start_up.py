"""From the start of a process to its first picture: the exported sampler and the sample command,
with and without programs that were compiled before.

    make demo-sd
    PYTHONPATH=. python benchmarks/start_up.py

draws one picture with the tiny Stable Diffusion student of `make demo-sd` in a new process each
time. "warm" finds its compiled program: the artifact in its own folder, the command in the cache of
slam_jax. "cold" finds none.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import result
import timing

# With what draw.py does, and when it did it.
FIRST_PICTURE = """
import time; start = time.perf_counter()
import json, sys; sys.path.insert(0, sys.argv[1])
from draw import load
imported = time.perf_counter()
draw = load(sys.argv[1])
loaded = time.perf_counter()
tokens = json.load(open(sys.argv[1] + "/artifact.json"))["example"]["tokens"]
draw(tokens, seed=3)
drawn = time.perf_counter()
draw(tokens, seed=4)
print(json.dumps({
    "import_jax_s": imported - start, "load_weights_s": loaded - imported,
    "program_and_first_picture_s": drawn - loaded, "second_picture_s": time.perf_counter() - drawn,
}))
"""


def run(*arguments: object, **changes: str) -> str:
    """A process's output; its environment is this one's but for `changes`, and JAX's cache."""
    command = [sys.executable, "-B", *map(str, arguments)]
    environment = {**os.environ, **changes}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        sys.exit(f"{said[-1]} (from: {' '.join(command[1:])})")
    return done.stdout


def subjects(model: str, steps: int, folder: Path, parts: dict[str, list]) -> Mapping[str, object]:
    """What is compared: functions by name, each of which starts one process.

    Args:
      model: to draw with.
      steps: of the sampler.
      folder: for the artifact and the caches.
      parts: where the artifact's processes say what took how long, by the name of the subject.
    """
    made = folder / "artifact"
    export = ["-m", "slam_jax", "export", "--artifact", "--batch-sizes", "1", "--platforms", "cpu"]
    run(*export, "--model", model, "--steps", steps, "--out", made)
    shutil.copytree(made, folder / "cold", ignore=shutil.ignore_patterns("compiled"))
    text = json.loads((made / "artifact.json").read_text())["example"]["prompt"]

    def artifact(name, at):
        parts[name].append(json.loads(run("-c", FIRST_PICTURE, at)))

    def sample(cache):
        command = ["-m", "slam_jax", "sample", "--model", model, "--prompt", text, "--steps", steps]
        run(*command, "--out", folder / "x.png", XDG_CACHE_HOME=str(cache))

    def without_compiled(draw, compiled):
        shutil.rmtree(compiled, ignore_errors=True)
        draw()

    sample(folder / "warm")
    return {
        "artifact, warm": lambda: artifact("artifact, warm", made),
        "artifact, cold": lambda: without_compiled(
            lambda: artifact("artifact, cold", folder / "cold"), folder / "cold" / "compiled"
        ),
        "sample, warm": lambda: sample(folder / "warm"),
        "sample, cold": lambda: without_compiled(
            lambda: sample(folder / "none"), folder / "none" / "slam_jax"
        ),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="runs/tiny_sd", help="as in slam-jax sample")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=result.positive, default=5)
    parser.add_argument("--out", type=Path, default=result.FOLDER, help="folder")
    arguments = parser.parse_args(argv)
    report = result.made_by("start_up.py", argv, ("jax", "jaxlib", "numpy"))
    parts = {"artifact, warm": [], "artifact, cold": []}
    with tempfile.TemporaryDirectory() as folder:
        compared = subjects(arguments.model, arguments.steps, Path(folder), parts)
        report["process_start_to_first_picture"] = timing.take_turns(
            compared, warm_up=0, repeats=arguments.repeats
        )
    report["of_which_median"] = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in parts.items()
    }
    result.write(report, arguments.out / "start_up.json")


if __name__ == "__main__":
    main()
