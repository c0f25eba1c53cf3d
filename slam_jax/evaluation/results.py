"""What was measured, as JSON with its protocol and as Markdown."""

from pathlib import Path
from typing import Any

from slam_jax.base.files import write_whole
from slam_jax.base.json_file import read_json, write_json
from slam_jax.drawing.metrics.registry import METRICS
from slam_jax.evaluation.published import beside
from slam_jax.parallel.runtime import versions

Rows = list[dict[str, Any]]


def to_markdown(rows: Rows, preset: str = "") -> str:
    """A table with a row for each number of steps, beside a number its interval or of how many
    answers it is a share; and a second table with what others published, where a preset fixes how
    it was measured."""
    names = [name for name in METRICS if any(name in row for row in rows)]
    head = ["model", "steps", "pictures", *(METRICS[name].title for name in names)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        numbers = [_number(row, name) for name in names]
        lines.append([row["model"], str(row["steps"]), str(row["pictures"]), *numbers])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{beside(rows, preset)}" if preset else table


def _number(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ""
    number = f"{row[name]:.4g}"
    if choices := row.get(f"{name}_choices"):
        return f"{number} of {choices}"
    if interval := row.get(f"{name}_interval"):
        return f"{number} ± {(interval[1] - interval[0]) / 2:.2g}"
    return number


def write_results(out: Path, rows: Rows, protocol: dict[str, Any], preset: str = "") -> Rows:
    """Writes results.json and results.md into a folder, each whole or not at all. Rows of other
    numbers of steps that were measured there before stay.

    Args:
      out: the folder.
      rows: numbers.
      protocol: how they were measured.
      preset: its name; "" where there is none.

    Returns:
      All rows.
    """
    path, steps = out / "results.json", {row["steps"] for row in rows}
    before = read_json(path, "remove it")["results"] if path.exists() else []
    kept = [row for row in before if row["steps"] not in steps]
    rows = sorted([*kept, *rows], key=lambda row: row["steps"])
    content = {"results": rows, "preset": preset, "protocol": protocol, "versions": versions()}
    write_json(path, content)
    write_whole(out / "results.md", to_markdown(rows, preset))
    return rows
