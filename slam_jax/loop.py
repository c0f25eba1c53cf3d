"""The loop around the step: batches, metrics, checkpoints, pictures, and a stop on Ctrl-C."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tensorboardX import SummaryWriter
from tqdm import tqdm

from slam_jax.checkpoint import Checkpoints
from slam_jax.config import Training
from slam_jax.data.batches import BatchIterator
from slam_jax.sharding import put_batch, replicated
from slam_jax.train import TrainState


class Interrupted(Exception):
    """The run was asked to stop; everything up to the step named is saved."""


class MetricWriter:
    """Scalars into metrics.jsonl and TensorBoard.

    Rows after `step`, which a run wrote that was killed after its last checkpoint, are dropped.
    """

    def __init__(self, folder: Path, step: int):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        rows = path.read_text().splitlines() if path.exists() else []
        kept = [row for row in rows if _step_of(row) <= step]
        path.write_text("".join(row + "\n" for row in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        # An empty bin's mean is NaN, which JSON has no word for.
        row = {"step": step} | {
            name: None if np.isnan(value) else value for name, value in values.items()
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _step_of(row: str) -> float:
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError):
        return np.inf  # the last line of a run that was killed while writing it


class StopRequest:
    """The first Ctrl-C or SIGTERM becomes a flag that the loop reads; the second stops at once."""

    def __enter__(self) -> "StopRequest":
        self.asked = False
        self._previous = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def fit(
    step_fn: Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    frozen: Any,
    data: BatchIterator,
    mesh: Mesh,
    training: Training,
    folder: Path,
    name: str,
    draw_samples: Callable[[TrainState, int], None] | None = None,
) -> TrainState:
    """Trains until `training.steps`, from the newest checkpoint in `folder` where there is one.

    Args:
      step_fn: from `make_train_step`.
      state: the state before the first step; its buffers are donated.
      frozen: weights that the loss reads.
      data: endless batches with a position.
      mesh: devices.
      training: how long and how often.
      folder: for checkpoints/, metrics.jsonl and tensorboard/.
      name: of the progress bar.
      draw_samples: called with (state, step) every `training.sample_every` steps.

    Raises:
      InputError: the newest checkpoint is of another model.
      Interrupted: Ctrl-C or SIGTERM came; the state is saved.
    """
    frozen = jax.device_put(frozen, replicated(mesh))
    with (
        Checkpoints(folder / "checkpoints", training.keep_checkpoints) as checkpoints,
        StopRequest() as stop,
    ):
        first = 0
        if checkpoints.latest_step is not None:
            placed = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
            )
            state, position = checkpoints.restore(placed)
            data.set_state(position)
            first = int(state.step)
        writer = MetricWriter(folder, first)
        pending, since = [], time.perf_counter()
        bar = tqdm(
            range(first, training.steps),
            name,
            training.steps,
            initial=first,
            unit="step",
            mininterval=1,
        )
        for step in (index + 1 for index in bar):
            state, metrics = step_fn(state, frozen, put_batch(next(data), mesh))
            pending.append(metrics)
            last = step == training.steps
            if step % training.log_every == 0 or last:
                values = _means(jax.device_get(pending))
                seconds, since = time.perf_counter() - since, time.perf_counter()
                values["samples_per_second"] = len(pending) * training.batch_size / seconds
                pending = []
                writer.write(step, values)
                bar.set_postfix(
                    loss=f"{values['loss']:.4f}",
                    samples_per_s=f"{values['samples_per_second']:.0f}",
                    refresh=False,
                )
            if step % training.checkpoint_every == 0 or last or stop.asked:
                checkpoints.save(step, state, data.get_state())
            if draw_samples and training.sample_every and step % training.sample_every == 0:
                draw_samples(state, step)
            if stop.asked and not last:
                bar.close()
                writer.close()
                raise Interrupted(
                    f"stopped at step {step} of {training.steps} ({name}); it is saved"
                )
        writer.close()
    return state


def _means(rows: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Mean of each metric over the steps since the last log, without the bins that were empty."""
    means = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows], np.float64)
        finite = values[~np.isnan(values)]
        means[name] = float(finite.mean()) if len(finite) else float("nan")
    return means
