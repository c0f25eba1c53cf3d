"""The report of a run: rows of metrics as Markdown and JSON."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.base.files import write_whole
from slam_jax.base.json_file import read_json, write_json
from slam_jax.drawing.metrics.registry import METRICS

SUMMARY_FILE = "summary.json"
TOOK = ("seconds", "peak_memory_gb")  # of the last start that trained


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


def write_report(
    workdir: Path,
    rows: list[dict[str, Any]],
    facts: dict[str, Any],
    took: dict[str, float] | None,
) -> None:
    """Writes the table as summary.md, then facts and rows as summary.json, each whole or not.

    Args:
      workdir: of the run.
      rows: of the table.
      facts: of the run.
      took: what this start took, by the names in TOOK; None: it trained nothing, and the report
        goes on saying what the training took.
    """
    if took is None:
        took = {}
        with suppress(InputError):  # no report yet, or a damaged one
            before = read_json(workdir / SUMMARY_FILE, "it is written again")
            took = {name: before[name] for name in TOOK if name in before}
    write_whole(workdir / "summary.md", to_markdown(rows))
    write_json(workdir / SUMMARY_FILE, {**took, **facts, "results": rows})
