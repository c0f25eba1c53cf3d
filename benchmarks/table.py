"""Markdown tables of results.

    PYTHONPATH=. python benchmarks/table.py

makes speed.md, switches.md and, of both the most important, fast.md anew from the JSON files in
benchmarks/results/ (or --out).
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import result

NAMES = {
    "ours": "slam_jax",
    "ours_from_pictures": "slam_jax, encoding pictures",
    "authors": "torch: the authors' step",
    "tuned": "torch: tuned step",
    "tuned_compiled": "torch: tuned step, compiled",
    "stock": "diffusers",
    "stock_compiled": "diffusers, compiled",
}
STARTS = ("cold", "with_cache")


def speed_tables(paths: Iterable[Path]) -> str:
    """All results of speed.py, a section for each size and device."""
    return "\n".join(_speed_section(json.loads(path.read_text())) for path in paths)


def switch_tables(paths: Iterable[Path]) -> str:
    """All results of switches.py, a section for each size and device."""
    return "\n".join(_switch_section(json.loads(path.read_text())) for path in paths)


def summary(speeds: Iterable[Path], gains: Iterable[Path]) -> str:
    """Ours beside the fastest peer of each kind, and what each switch gains."""
    rows = [row for path in speeds for row in _races(json.loads(path.read_text()))]
    text = markdown(["size, device", "what", "slam_jax", "torch, diffusers", "ratio"], rows)
    rows = [row for path in gains for row in _gains(json.loads(path.read_text()))]
    head = ["size, device", "gain of the default over", "training step", "drawing", "start", ""]
    return text + "\n" + markdown(head, rows)


def _races(report: dict[str, Any]) -> Iterator[list[str]]:
    """Rows of summary: a training step from latents, one from pictures, drawing, decoding."""
    size, parts = f"{report['shapes']}, {report['device']['name']}", report["parts"]
    if "train_step" in parts:
        subjects, batch = parts["train_step"]["subjects"], parts["train_step"]["batch"]
        for what, ours, peers in (
            (f"training step, batch {batch}", "ours", ("tuned", "tuned_compiled")),
            ("the same from pictures", "ours_from_pictures", ("authors",)),
        ):
            if peer := _fastest(subjects, peers):
                rates = [subjects[name]["samples_per_second"] for name in (ours, peer)]
                cells = [f"{rate:.3g} samples/s" for rate in rates]
                cells[1] += f" ({NAMES[peer].removeprefix('torch: ')})"
                yield [size, what, *cells, f"{rates[0] / rates[1]:.2f}x"]
    for part, verb in (("sampler", "draw"), ("vae", "decode")):
        rows = parts.get(part, {"rows": []})["rows"]
        most = max((row.get("steps", 0) for row in rows), default=0)
        for row in (row for row in rows if row.get("steps", most) == most):
            if peer := _fastest(row["subjects"], ("stock", "stock_compiled")):
                times = [row["subjects"][name]["ms"] for name in ("ours", peer)]
                steps = f" in {most} steps" if "steps" in row else ""
                cells = [f"{time:.3g} ms" for time in times]
                what = f"{verb} {row['batch']}{steps}"
                yield [size, what, *cells, f"{times[1] / times[0]:.2f}x"]


def _fastest(subjects: dict[str, Any], names: Iterable[str]) -> str | None:
    """The one that took least time, of those that ran."""
    ran = [name for name in names if "median_s" in subjects.get(name, {})]
    return min(ran, key=lambda name: subjects[name]["median_s"], default=None)


def _gains(report: dict[str, Any]) -> Iterator[list[str]]:
    """Rows of summary, one for each switch and value."""
    size, found = f"{report['shapes']}, {report['device']['name']}", {}
    for what, rows in report["switches"].items():
        for row in rows:
            if "gain" in row:
                by = found.setdefault((row["switch"], row["value"]), {})
                by |= {what: f"{row['gain']:.2f}x", "note": row.get("note", "")}
    for (switch, value), by in found.items():
        cells = [by.get(name, "") for name in ("train_step", "sampler", "start", "note")]
        yield [size, f"{switch}: {value}", *cells]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _speed_section(report: dict[str, Any]) -> str:
    parts = report["parts"]
    text = f"### {report['shapes']} on {report['device']['name']}\n"
    for name, made_table in (
        ("train_step", _train_table),
        ("sampler", _drawing_table),
        ("vae", _drawing_table),
        ("compile", _compile_table),
        ("loader", _loader_line),
    ):
        if name in parts:
            made = parts[name]["made_by"]
            text += f"\n{name.replace('_', ' ')}, {made['dtype']}\n\n{made_table(parts[name])}"
            text += f"\n`{made['command']}`; load average {made['load_average']:.1f} before\n"
    return text


def _spread(row: dict[str, Any], unit: float = 1e3) -> str:
    return f"{row['low_s'] * unit:.3g} to {row['high_s'] * unit:.3g}"


def _train_table(part: dict[str, Any]) -> str:
    rows, ours = [], part["subjects"]["ours"]["samples_per_second"]
    for name, row in part["subjects"].items():
        if "failed" in row:
            rows.append([NAMES[name], row["failed"], *[""] * 5])
            continue
        rate = row["samples_per_second"]
        rows.append(
            [
                NAMES[name],
                f"{rate:.3g}",
                f"{ours / rate:.2f}x",
                _spread(row, 1e3 / part["steps_in_a_call"]),
                f"{row['tflops']:.3g}",
                f"{row['mfu']:.1%}" if "mfu" in row else "",
                "" if name == row["like"] else f"{row['difference']:.1e}",
            ]
        )
    head = ["step", "samples/s", "slam_jax is", "ms a step", "TF/s", "MFU", "losses differ"]
    return f"batch {part['batch']}\n\n" + markdown(head, rows)


def _drawing_table(part: dict[str, Any]) -> str:
    rows = []
    for setting in part["rows"]:
        ours = setting["subjects"]["ours"]["median_s"]
        for name, row in setting["subjects"].items():
            size = [str(setting["batch"]), str(setting.get("steps", ""))]
            if "failed" in row:
                rows.append([*size, NAMES[name], row["failed"], *[""] * 3])
                continue
            rows.append(
                [
                    *size,
                    NAMES[name],
                    f"{row['ms']:.3g}",
                    f"{row['median_s'] / ours:.2f}x",
                    _spread(row),
                    "" if name == row["like"] else f"{row['difference']:.2g}",
                ]
            )
    head = ["pictures", "steps", "by", "ms", "slam_jax is", "lowest to highest", "differ, of 255"]
    return markdown(head, rows)


def _compile_table(part: dict[str, Any]) -> str:
    names = [name for name in part["cold"] if name.endswith("_s")]
    rows = [
        [name.removesuffix("_s").replace("_", " "), *(_median(part[k][name]) for k in STARTS)]
        for name in names
    ]
    return markdown(["seconds of a start", "first", "later"], rows)


def _median(row: dict[str, Any]) -> str:
    text = f"{row['median_s']:.2f}"
    return text if row["repeats"] == 1 else f"{text} ({row['low_s']:.2f} to {row['high_s']:.2f})"


def _loader_line(part: dict[str, Any]) -> str:
    return f"{part['samples_per_second']:.0f} samples/s of prepared latents, one process\n"


def _switch_section(report: dict[str, Any]) -> str:
    text, made = f"### {report['shapes']} on {report['device']['name']}\n", {}
    for what, rows in report["switches"].items():
        cells = [
            [
                row["switch"],
                row["value"],
                f"{row['default_ms']:.3g}" if "ms" in row else "",
                f"{row['ms']:.3g}" if "ms" in row else row.get("left_out") or row["failed"],
                f"{row['gain']:.2f}x" if "gain" in row else "",
                f"{row['difference']:.1e}" if "difference" in row else "",
                row.get("note", ""),
            ]
            for row in rows
        ]
        head = ["switch", "value", "default, ms", "ms", "default is", "differ", "note"]
        text += f"\n{what.replace('_', ' ')}\n\n{markdown(head, cells)}"
        made |= {row["made_by"]["command"]: row["made_by"] for row in rows}
    return text + "".join(
        f"\n`{command}`: {by['dtype']}, batch {by['batch']}; load average "
        f"{by['load_average']:.1f} before\n"
        for command, by in made.items()
    )


def write(folder: Path) -> None:
    """All tables of the results in a folder, anew."""
    speeds, gains = (sorted(folder.glob(f"{name}_*.json")) for name in ("speed", "switches"))
    (folder / "speed.md").write_text(speed_tables(speeds))
    (folder / "switches.md").write_text(switch_tables(gains))
    (folder / "fast.md").write_text(summary(speeds, gains))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=result.FOLDER)
    write(parser.parse_args(argv).out)


if __name__ == "__main__":
    main()
