"""Tables and curves of what methods.py measured.

    PYTHONPATH=. python benchmarks/methods_tables.py benchmarks/results/methods_digits.json

makes the .md and .png beside it anew.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from table import markdown

LCM = "LCM"  # what others are compared with
TO_TEACHER = "_to_teacher"
TITLES = {
    "fd_pixels": "FD pixels",
    "fd_features": "FD features",
    "fd_to_teacher": "FD to teacher",
    "fd_colours": "FD colours",
    "fd_colours_to_teacher": "FD colours to teacher",
    "fd_efficientnet": "FD EfficientNet-Lite0",
    "fd_efficientnet_to_teacher": "FD EfficientNet-Lite0 to teacher",
    "label_accuracy": "label accuracy",
    "retrieval": "caption retrieval",
    "rmse_to_teacher": "RMSE to teacher",
}


class Column(NamedTuple):
    """One number of a row."""

    prompts: str
    metric: str

    def of(self, row: dict[str, Any]) -> float:
        """The number."""
        return row.get(self.prompts, {}).get(self.metric, np.nan)


class Results:
    """What was measured, and questions to it.

    Args:
      report: what methods.py wrote.
      times: at which students drew, "grid" or "between".
    """

    def __init__(self, report: dict[str, Any], times: str = "grid"):
        rows = [row for row in report["rows"] if row.get("times", "grid") == times]
        self.report, self.rows = report, rows
        self.students = list(dict.fromkeys(row["student"] for row in rows))
        self.seeds = sorted({row["seed"] for row in rows})
        self.steps = sorted({row["steps"] for row in rows})
        self.columns = [
            Column(prompts, metric)
            for prompts, numbers in report["teacher"][0].items()
            if isinstance(numbers, dict)
            for metric in (rows[-1].get(prompts, ()) if rows else ())
        ]

    @property
    def best(self) -> list[Column]:
        """The columns of sets of prompts that are more than quick, where there are such."""
        about = self.report["protocol"].get("prompts", {})
        quick = {name for name, facts in about.items() if facts["quick"]}
        return [column for column in self.columns if column.prompts not in quick] or self.columns

    @property
    def on_the_way(self) -> list[Column]:
        """The distances to the teacher that were measured at all checkpoints, FD first."""
        first = self.curve(self.students[0], self.seeds[0], self.steps[0])[0]
        found = [c for c in to_teacher(self.columns) if not np.isnan(c.of(first))]
        return sorted(found, key=lambda column: not column.metric.startswith("fd"))

    @property
    def distances(self) -> list[Column]:
        """Those of them that compare with the teacher's pictures."""
        return to_teacher(self.best)

    def curve(self, student: str, seed: int, steps: int) -> list[dict[str, Any]]:
        """The rows of a run in one number of steps, from its first checkpoint to its last."""
        wanted = {"student": student, "seed": seed, "steps": steps}
        found = [row for row in self.rows if wanted.items() <= row.items()]
        return sorted(found, key=lambda row: row["passes"])

    def last(self, student: str, steps: int, column: Column) -> np.ndarray:
        """The number at the end of training, for each seed."""
        return np.array([column.of(self.curve(student, s, steps)[-1]) for s in self.seeds])

    def after(self, seconds: float, student: str, steps: int, column: Column) -> np.ndarray:
        """The number after so long a training, for each seed, between checkpoints on a line."""
        curves = [self.curve(student, seed, steps) for seed in self.seeds]
        return np.array(
            [
                np.interp(seconds, [row["seconds"] for row in curve], [column.of(r) for r in curve])
                for curve in curves
            ]
        )

    def shortest(self) -> float:
        """The seconds after which the fastest student's training was over, in the mean of seeds."""
        first = self.steps[0]
        ends = [
            np.mean([self.curve(student, seed, first)[-1]["seconds"] for seed in self.seeds])
            for student in self.students
        ]
        return float(min(ends))


def to_teacher(columns: Sequence[Column]) -> list[Column]:
    """The columns that compare with the teacher's pictures."""
    return [column for column in columns if column.metric.endswith(TO_TEACHER)]


def half_width(values: np.ndarray) -> float:
    """Of the 95% interval of a mean, by Student's t."""
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))


def with_interval(values: np.ndarray, number: Callable[[float], str]) -> str:
    """Mean and half of the interval; nothing where it was not measured."""
    if np.isnan(values).any():
        return ""
    return f"{number(np.mean(values).item())} ± {number(half_width(values)).lstrip('+')}"


def three(value: float) -> str:
    """A number of a table."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def title(column: Column, results: Results) -> str:
    """The head of a column."""
    several = len({c.prompts for c in results.best}) > 1
    name = TITLES.get(column.metric, column.metric)
    return f"{name}, {column.prompts}" if several else name


def whole_table(results: Results) -> str:
    """All numbers at the end of training."""
    head = ["model", "steps", *(title(column, results) for column in results.best)]
    rows = [
        [
            "teacher, other noise" if row.get("other_noise") else "teacher",
            str(row["steps"]),
            *(three(column.of(row)) for column in results.best),
        ]
        for row in results.report["teacher"]
    ]
    return markdown(head, [*rows, *of_students(results, results.best)])


def students_table(results: Results) -> str:
    """Distances to the teacher at the end of training."""
    columns = results.distances
    head = ["student", "steps", *(title(column, results) for column in columns)]
    return markdown(head, list(of_students(results, columns)))


def of_students(results: Results, columns: list[Column]) -> Iterator[list[str]]:
    """The rows of a table."""
    for student in results.students:
        for steps in results.steps:
            numbers = [results.last(student, steps, column) for column in columns]
            yield [student, str(steps), *(with_interval(values, three) for values in numbers)]


def against(
    results: Results, columns: list[Column], values: Callable[[str, int, Column], np.ndarray]
) -> str:
    """How much nearer to the teacher than LCM's student the others are, seed by seed, in percent;
    bold where the interval leaves 0 out."""
    rows = []
    for student in results.students:
        for steps in results.steps:
            cells = []
            for column in columns:
                ours, theirs = (values(name, steps, column) for name in (student, LCM))
                cells.append(relative(ours / theirs - 1))
            if student != LCM:
                rows.append([student, str(steps), *cells])
    return markdown(["student", "steps", *(title(c, results) for c in columns)], rows)


def relative(changes: np.ndarray) -> str:
    """A change in percent with its interval."""
    text = with_interval(100 * changes, lambda value: f"{value:+.1f}%")
    return f"**{text}**" if abs(np.mean(changes)) > half_width(changes) else text


def text_of(results: Results, between: Results) -> Iterator[str]:
    """The page, a paragraph or table at a time.

    Args:
      results: of students that drew at the times of the grid.
      between: of the same between them; perhaps of no rows.
    """
    report, count = results.report, len(results.seeds)
    most = max(row["passes"] for row in results.rows) / 1000
    yield (
        f"`{report['command']}` on {report['machine']}; guidance w = {report['protocol']['w']:g}. "
        f"{most:,.0f} thousand network passes each; mean ± half of a 95% interval over {count} "
        f"seeds of training, {results.seeds[0]} to {results.seeds[-1]}.\n"
    )
    yield whole_table(results)
    if real := report["protocol"].get("retrieval_of_real_pictures"):
        yield (
            f"Of real pictures the judge finds {real['train']:.3f} of the captions that it was "
            f"trained on, and {real['held_out']:.3f} of the others, among 100.\n"
        )
    if LCM in results.students:
        yield f"After the same passes, against {LCM} with the same seed (negative: nearer):\n"
        yield against(results, results.distances, results.last)
        seconds = results.shortest()
        yield f"After the same time, {seconds:.0f} seconds of training:\n"
        yield against(results, results.on_the_way, lambda *asked: results.after(seconds, *asked))
    if between.rows:
        yield (
            "After the same passes, drawn at times between those of the grid (each t half a "
            "sub-path smaller):\n"
        )
        yield students_table(between)
        if LCM in results.students:
            yield f"Against {LCM}, which draws at these times, too:\n"
            yield against(between, between.distances, between.last)


def curves(results: Results, path: Path) -> None:
    """An FD to the teacher over passes and over seconds; the shade is the interval."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    steps = results.steps
    column = results.on_the_way[0]
    figure, axes = plt.subplots(
        2, len(steps), figsize=(3 * len(steps), 6), squeeze=False, layout="constrained"
    )
    for row, (key, unit) in enumerate((("passes", 1e3), ("seconds", 1))):
        for axis, count in zip(axes[row], steps, strict=True):
            for student in results.students:
                runs = [results.curve(student, seed, count) for seed in results.seeds]
                x = np.mean([[r[key] for r in one] for one in runs], axis=0) / unit
                y = np.array([[column.of(r) for r in one] for one in runs])
                mean, half = y.mean(axis=0), np.array([half_width(v) for v in y.T])
                axis.plot(x, mean, marker="o", markersize=3, label=student)
                axis.fill_between(x, mean - half, mean + half, alpha=0.2)
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
            axis.set_title(f"{count} step{'s' * (count > 1)}")
            axis.set_xlabel("thousand network passes" if key == "passes" else "seconds of training")
    for row in axes:
        row[0].set_ylabel(title(column, results))
    axes[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(report: dict[str, Any], stem: Path) -> None:
    """Writes STEM.md and STEM.png."""
    results = Results(report)
    text = "\n".join(text_of(results, Results(report, "between")))
    stem.with_suffix(".md").write_text(text)
    curves(results, stem.with_suffix(".png"))
    print(text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="what methods.py wrote")
    path = parser.parse_args(argv).result
    write(json.loads(path.read_text()), path.with_suffix(""))


if __name__ == "__main__":
    main()
