"""What every result says of its making, and where it goes; for the scripts beside this file."""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def made_by(script: str, argv: Sequence[str] | None, packages: Sequence[str]) -> dict[str, Any]:
    """Command, machine and versions; called before anything is measured.

    Args:
      script: the file's name.
      argv: its arguments; None: those of this process.
      packages: whose versions matter.
    """
    arguments = sys.argv[1:] if argv is None else argv
    return {
        "command": " ".join([f"PYTHONPATH=. python benchmarks/{script}", *arguments]),
        "machine": f"{_cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": os.getloadavg()[0],
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _cpu_name() -> str:
    """The processor's name as Linux says it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def write(report: dict[str, Any], path: Path) -> None:
    """Writes a result as JSON, and prints it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2)
    path.write_text(text + "\n")
    print(text)
