"""The metrics of a run: means since the last row, in metrics.jsonl, in TensorBoard, and where it is
asked for in Weights & Biases."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from slam_jax.base.errors import InputError
from slam_jax.base.files import write_whole
from slam_jax.base.json_file import parse_json
from slam_jax.data.rejects import Rejects
from slam_jax.parallel.processes import is_main
from slam_jax.training.board import Board
from slam_jax.training.wandb_log import Wandb, WandbLog
from slam_jax.training.workdir import METRICS_FILE, ladder_file


class MetricLog:
    """Means of the metrics since the last row: every process knows them, the first one writes them.

    Rows after `step`, which a run wrote that was killed after its last checkpoint, are dropped.

    Args:
      folder: of the run.
      step: of the newest checkpoint.
      batch_size: examples in a step.
      wandb: where it is logged to besides.
    """

    def __init__(self, folder: Path, step: int, batch_size: int, wandb: Wandb | None = None):
        self._file = self._board = self._wandb = None
        self._folder, self._first = folder, step
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / METRICS_FILE
            rows = read_rows(folder)
            kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step)
            write_whole(path, kept.encode())
            if wandb and wandb.project:
                last = max((row["step"] for row in rows), default=0)
                self._wandb = WandbLog(folder, wandb, last)
            self._file = path.open("a")
        self._batch_size, self._rows, self._known = batch_size, [], set()
        self.start_clock()

    def start_clock(self) -> None:
        """Steps added so far do not count as training time; the first one was compiled."""
        self._started, self._untimed = time.perf_counter(), len(self._rows)

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Keeps a step's metrics on the device; nothing waits for them."""
        self._rows.append(metrics)

    def write(self, step: int, rejects: Rejects, measured: dict[str, float]) -> dict[str, float]:
        """Writes a row and returns it: the means of what is finite (a bin that stayed empty, a step
        that was skipped), and what was measured once. Says which kinds of examples were passed over
        for the first time."""
        rows = jax.device_get(self._rows)
        seconds = time.perf_counter() - self._started
        values = dict(measured)
        if timed := len(rows) - self._untimed:
            values["samples_per_second"] = timed * self._batch_size / seconds
        for name in rows[0]:
            column = np.array([row[name] for row in rows], np.float64)
            if np.any(finite := np.isfinite(column)):
                values[name] = float(column[finite].mean())
        values["skipped"] = int(rows[-1]["skipped"])  # in the whole run
        if rejects.total:
            values["rejected_examples"] = rejects.total
        for reason, name in rejects.first.items():
            if reason not in self._known:
                tqdm.write(f"note: passed over {name}: {reason}", file=sys.stderr)
        self._known = set(rejects.first)
        if self._file:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            self._board = self._board or Board(self._folder / "tensorboard", self._first)
            picture = ladder_file(self._folder, step)
            shown = picture if measured and picture.exists() else None
            self._board.add(step, values, shown)
            if self._wandb:
                self._wandb.add(step, values, shown)
        self._rows = []
        self.start_clock()
        return values

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """What happens inside does not count as training time."""
        stopped = time.perf_counter()
        yield
        self._started += time.perf_counter() - stopped

    def close(self) -> None:
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.close()


def read_rows(folder: Path) -> tuple[dict[str, float], ...]:
    """The rows that a run has written so far; a last one that is being written, or that a kill cut
    off, is left out.

    Raises:
      InputError: another one is damaged, or the file cannot be read; names it and the line.
    """
    path = folder / METRICS_FILE
    try:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); move it away") from error
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    try:
        # All together: faster than one by one, and the rows share the strings of their names.
        rows = parse_json((b"[" + b",".join(lines) + b"]").decode())
    except ValueError:
        rows = []
    if len(rows) != len(lines) or not all(map(_is_row, rows)):
        number, why = next(_damages(lines))
        raise InputError(f"{path}: line {number} is damaged ({why}); remove the line")
    return tuple(rows)


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("step"), int)


def _damages(lines: Sequence[bytes]) -> Iterator[tuple[int, str]]:
    """(number, why) of each line that is no row."""
    for number, line in enumerate(lines, 1):
        try:
            if not _is_row(parse_json(line.decode())):
                yield number, 'expected a JSON object with a "step"'
        except ValueError as error:
            yield number, str(error)
