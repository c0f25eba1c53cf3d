"""SLAM against LCM on the handwritten digits: one teacher, several seeds each.

    python benchmarks/slam_vs_lcm.py --runs runs/slam_vs_lcm

Writes slam_vs_lcm.json and slam_vs_lcm.md into benchmarks/results/ (or --out). A run that is there
already is not repeated, so that an interrupted comparison goes on where it stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from result import FOLDER, made_by
from table import markdown

ROOT = Path(__file__).parents[1]
METRICS = {
    "fd_pixels": "FD pixels",
    "fd_features": "FD features",
    "label_accuracy": "accuracy",
    "fd_to_teacher": "FD to teacher",
}


def run(name: str, seed: int, flags: list[str], runs: Path, config: str) -> dict:
    """One training run in its own process; returns its summary."""
    workdir = runs / f"{name}_seed{seed}"
    command = [sys.executable, "-m", "slam_jax", "train", "--config", config]
    command += ["--workdir", str(workdir), "--resume", f"--config.seed={seed}"]
    command += [f"--config.teacher.path={runs / 'teacher'}", *flags]
    record = runs / f"{name}_seed{seed}.command.json"
    if record.exists() and json.loads(record.read_text()) != command[3:]:
        sys.exit(f"error: {record}: made by another command; choose another --runs")
    runs.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(command[3:]))
    if not (workdir / "summary.json").exists():
        subprocess.run(command, cwd=ROOT, check=True)
    return json.loads((workdir / "summary.json").read_text())


def table(results: dict[str, list[dict]]) -> str:
    """Mean and standard deviation over the seeds, a row for each model and step count."""
    head = ["student", "steps", *METRICS.values()]
    lines = []
    for name, summaries in results.items():
        for place, row in enumerate(summaries[0]["results"]):
            if row["model"] == "teacher" and name != next(iter(results)):
                continue  # one teacher, shared
            cells = [name if row["model"] == "student" else "teacher", str(row["steps"])]
            for metric in METRICS:
                values = [summary["results"][place][metric] for summary in summaries]
                cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
            lines.append(cells)
    return markdown(head, lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="digits", help="a recipe, or the path of a file")
    parser.add_argument("--runs", type=Path, default=Path("runs/slam_vs_lcm"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("flags", nargs="*", help="after --: config overrides for every run")
    options = parser.parse_args(argv)
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: a spread needs 2 or more")
    runs = options.runs.absolute()
    variants = {
        "SLAM": [],
        "LCM": ["--config.method.gamma=one"],
    }
    results = {
        name: [
            run(name, seed, [*options.flags, *flags], runs, options.config)
            for seed in range(options.seeds)
        ]
        for name, flags in variants.items()
    }
    report = {**made_by("slam_vs_lcm.py", argv, ("jax", "flax", "optax", "numpy")), "runs": results}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "slam_vs_lcm.json").write_text(json.dumps(report, indent=2) + "\n")
    text = (
        f"`{report['command']}` on {report['machine']}; mean ± standard deviation over "
        f"{options.seeds} seeds.\n\n{table(results)}"
    )
    (options.out / "slam_vs_lcm.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
