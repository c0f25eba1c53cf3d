"""What a run was started with, for its report."""

import time
from collections import Counter
from typing import Any

import jax

from slam_jax.parallel import runtime


def record_of(command: str) -> dict[str, Any]:
    """JSON-serialisable.

    Args:
      command: what started it; "" where that was no command line.
    """
    kinds = Counter(device.device_kind for device in jax.devices())
    return {
        "command": command,
        "started": time.strftime("%Y-%m-%d %H:%M"),
        "versions": runtime.versions(),
        "devices": [f"{count} x {kind}" for kind, count in kinds.items()],
        "processes": jax.process_count(),
    }
