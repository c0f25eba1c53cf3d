"""The report of a run: rows of metrics as Markdown and JSON."""

from pathlib import Path
from typing import Any

from slam_jax.base.files import write_whole
from slam_jax.base.json_file import write_json
from slam_jax.drawing.metrics.registry import METRICS

SUMMARY_FILE = "summary.json"


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of metrics as a Markdown table, with a column for each that any row has."""
    titles = {name: metric.title for name, metric in METRICS.items()}
    names = list(dict.fromkeys(name for row in rows for name in row))[2:]
    head = ["model", "steps", *(titles.get(name, name) for name in names)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        numbers = [f"{row[name]:.3f}" if name in row else "" for name in names]
        lines.append([row["model"], str(row["steps"]), *numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_report(workdir: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Writes the table as summary.md, then facts and rows as summary.json, each whole or not."""
    write_whole(workdir / "summary.md", to_markdown(rows))
    write_json(workdir / SUMMARY_FILE, {**facts, "results": rows})
