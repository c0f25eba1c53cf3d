"""Runs scripts with stand-ins for programs that are not here."""

import os
import stat
import subprocess
from pathlib import Path


def executable(path: Path, text: str) -> Path:
    """Writes a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """This one, where programs in folder/bin come first and nothing says where a run is."""
    chosen = ("JAX_", "XLA_", "CUDA_", "SLURM_", "TPU_", "ZONE", "ACCELERATOR_", "RUNTIME_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(chosen)}
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "TMPDIR": str(folder), **changes}


def run(
    folder: Path, *command: str | Path, cwd=None, **changes: str
) -> subprocess.CompletedProcess:
    """Runs a command in the folder, or in `cwd`, in that environment."""
    return subprocess.run(
        command,
        cwd=cwd or folder,
        env=environment(folder, **changes),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
