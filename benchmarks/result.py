"""What every result says of its making, and where it goes; for the scripts beside this file."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
# Dense bfloat16, in 1e12 operations a second, by what is in a device's name; the first that fits.
PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "GH200": 989, "A100": 312}


def made_by(script: str, argv: Sequence[str] | None, packages: Sequence[str]) -> dict[str, Any]:
    """Command, machine and versions; called before anything is measured.

    Args:
      script: the file's name.
      argv: its arguments; None: those of this process.
      packages: whose versions matter.
    """
    arguments = sys.argv[1:] if argv is None else argv
    return {
        "command": f"PYTHONPATH=. python benchmarks/{script} {shlex.join(arguments)}".rstrip(),
        "machine": f"{_cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": os.getloadavg()[0],
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def positive(text: str) -> int:
    """The value of an option that counts."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 or more")
    return int(text)


def _cpu_name() -> str:
    """The processor's name as Linux says it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def device() -> dict[str, Any]:
    """What JAX computes on: platform, name, driver and memory of a GPU, and the peak where it is
    known."""
    import jax

    first = jax.devices()[0]
    if first.platform == "cpu":
        return {"platform": "cpu", "name": _cpu_name(), "cores": threads(), "peak_tflops": None}
    peaks = (peak for part, peak in PEAKS.items() if part in first.device_kind)
    return {
        "platform": first.platform,
        "name": first.device_kind,
        "driver": _nvidia_smi("driver_version"),
        "memory": _nvidia_smi("memory.total"),
        "peak_tflops": next(peaks, None),
    }


def threads() -> int:
    """Cores that this process may use; torch and XLA get as many threads."""
    return len(os.sched_getaffinity(0))


def device_slug() -> str:
    """The device's name for a file: "cpu", "nvidia_h200"."""
    import jax

    first = jax.devices()[0]
    name = "cpu" if first.platform == "cpu" else first.device_kind
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def _nvidia_smi(field: str) -> str | None:
    """A field of the first GPU; None without the program."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return lines[0].strip() if lines else None


def installed(packages: Sequence[str]) -> list[str]:
    """Those of the packages that are there."""
    return [name for name in packages if importlib.util.find_spec(name) is not None]


def write(report: dict[str, Any], path: Path) -> None:
    """Writes a result as JSON, and prints it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2)
    path.write_text(text + "\n")
    print(text)
