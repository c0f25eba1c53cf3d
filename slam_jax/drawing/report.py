"""The report of a run: rows of metrics as Markdown and JSON."""

import json
from pathlib import Path
from typing import Any

from slam_jax.base.files import write_whole
from slam_jax.drawing.metrics.registry import METRICS


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of metrics, all with the same keys, as a Markdown table."""
    titles = {name: metric.title for name, metric in METRICS.items()}
    head = [titles.get(name, name) for name in rows[0]]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        numbers = [f"{value:.3f}" for value in list(row.values())[2:]]
        lines.append([row["model"], str(row["steps"]), *numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_report(workdir: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Writes the table as summary.md, then facts and rows as summary.json, each whole or not."""
    content = json.dumps({**facts, "results": rows}, indent=2)
    for name, text in (("summary.md", to_markdown(rows)), ("summary.json", content)):
        write_whole(workdir / name, text)
