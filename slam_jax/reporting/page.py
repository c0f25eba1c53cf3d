"""The report of a run: one HTML file that needs no server and no network.

The curves are drawn by Chart.js (vendor/, as npm has it), which is inlined. It takes 200 KB,
where other libraries that tell values under the pointer and hide curves by a click take 1 to 5 MB;
and its colours follow those of the page, light or dark.
"""

import base64
import re
import sys
import time
from dataclasses import asdict
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from slam_jax import __version__
from slam_jax.base.files import write_whole
from slam_jax.drawing.metrics.registry import METRICS
from slam_jax.parallel.processes import is_main
from slam_jax.reporting import facts
from slam_jax.reporting.charts import charts
from slam_jax.reporting.data import Row, RunData, Strip, Strips, read_run_data
from slam_jax.reporting.findings import findings

REPORT_FILE = "report.html"
HERE = Path(__file__).parent
INLINED = {"style": "report.css", "chart_js": "vendor/chart.umd.min.js", "script": "report.js"}


def write_page(workdir: Path) -> Path:
    """Writes the report of the run in a workdir, finished or not, and returns its path.

    Raises:
      InputError: it is the folder of no run, or a file of it is damaged.
      OSError: it cannot be written.
    """
    path = workdir / REPORT_FILE
    write_whole(path, render(read_run_data(workdir)))
    return path


def try_page(workdir: Path) -> None:
    """Writes the report in the first process, if it can: no training ends for want of it."""
    if not is_main():
        return
    try:
        write_page(workdir)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        tqdm.write(f"note: {workdir / REPORT_FILE}: not written ({why})", file=sys.stderr)


def render(run: RunData) -> str:
    """The page."""
    ladders, curves = charts(run)
    images = sorted({strip.image for one in run.ladders for strip in (one.teacher, *one.student)})
    return _template().render(
        run=run,
        headline=list(facts.headline(run)),
        findings=findings(run),
        results=results_table(run.summary or {}),
        measured=measured_in_table(run),
        what=list(facts.what_was_run(run)),
        protocol=list(facts.protocol(run)),
        method=facts.options_of_method(run.config),
        options=facts.changed_options(run.config),
        ladder_charts=[chart.title for chart in ladders],
        curve_charts=[chart.title for chart in curves],
        data={
            "step": run.step,
            "charts": [asdict(chart) for chart in (*ladders, *curves)],
            "images": [f"data:image/webp;base64,{base64.b64encode(i).decode()}" for i in images],
            "ladders": [_pictures(ladder, run, images) for ladder in run.ladders],
        },
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        **_inlined(),
    )


@cache
def _template() -> Any:
    import jinja2  # here, as only a page needs it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


@cache
def _inlined() -> dict[str, str]:
    texts = {name: (HERE / file).read_text("utf-8") for name, file in INLINED.items()}
    # Of a file that is not there: a browser would look for it.
    return {name: re.sub("//# sourceMappingURL=.*", "", text) for name, text in texts.items()}


def results_table(summary: dict[str, Any]) -> dict[str, Any] | None:
    """The rows of the report: heads, and cells with whether they are the best of the students';
    None where there are none yet."""
    rows = summary.get("results")
    if not rows:
        return None
    names = [
        n for n in dict.fromkeys(n for row in rows for n in row) if n not in ("model", "steps")
    ]
    best = {}
    for name in names:
        values = [row[name] for row in rows if row["model"] == "student" and name in row]
        if name in METRICS and len(values) > 1:
            best[name] = min(values) if METRICS[name].lower_is_better else max(values)
    heads = [(METRICS[name].title if name in METRICS else name) for name in names]
    return {
        "heads": heads,
        "marked": bool(best),
        "rows": [
            {
                "model": row["model"],
                "steps": row["steps"],
                "cells": [
                    (
                        _number(row.get(n)),
                        row["model"] == "student" and row.get(n, "") == best.get(n),
                    )
                    for n in names
                ],
            }
            for row in rows
        ],
    }


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def measured_in_table(run: RunData) -> str:
    """Of how many pictures the numbers of the table are; "" where nobody knows."""
    names = dict.fromkeys(chain.from_iterable((run.summary or {}).get("results", ())))
    titles: dict[int, list[str]] = {}
    for metric in (METRICS[name] for name in names if name in METRICS):
        if count := run.measured(metric, table=True):
            titles.setdefault(count, []).append(metric.title)
    if len(titles) == 1:
        return f"{_of(*titles)} a row"
    return "; ".join(f"{', '.join(found)} {_of(count)}" for count, found in titles.items())


def _of(count: int) -> str:
    return f"of {count:,} picture{'s' * (count > 1)}"


def _pictures(ladder: Strips, run: RunData, images: list[bytes]) -> dict[str, Any]:
    """A ladder for the page's script, its strips by their place among the images."""
    measured = next((row for row in run.rows if row["step"] == ladder.step), {})
    return {
        "step": ladder.step,
        "prompts": ladder.prompts,
        "width": ladder.size[0],
        "height": ladder.size[1],
        "teacher": {"steps": ladder.teacher.steps, "image": images.index(ladder.teacher.image)},
        "student": [
            {
                "steps": strip.steps,
                "image": images.index(strip.image),
                "numbers": _numbers(strip, ladder, run, measured),
            }
            for strip in ladder.student
        ],
    }


def _numbers(strip: Strip, ladder: Strips, run: RunData, measured: Row) -> str:
    """What was measured of these pictures, and by networks of as many as they see, in a line."""
    teacher, found = ladder.teacher, {ladder.pictures: []}
    for name, metric in METRICS.items():
        if (key := f"{name}_{strip.steps}") in measured:
            count = run.measured(metric) if metric.networks else ladder.pictures
            found.setdefault(count, []).append(f"{metric.title} {measured[key]:.3g}")
    border = f"at the border {strip.at_border:.1%} of the pixels (teacher {teacher.at_border:.1%})"
    found[ladder.pictures].append(border)
    return "; ".join(
        f"{_of(count)}: {' · '.join(numbers)}" if count else " · ".join(numbers)
        for count, numbers in found.items()
    )
