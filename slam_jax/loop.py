"""The loop around the step: batches, metrics, checkpoints, pictures, and a stop on Ctrl-C."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tensorboardX import SummaryWriter
from tqdm import tqdm

from slam_jax.checkpoint import Checkpoints
from slam_jax.config import Training
from slam_jax.data.batches import Batches
from slam_jax.data.rejects import Rejects
from slam_jax.errors import InputError
from slam_jax.sharding import put_batch, replicated
from slam_jax.train import Params, TrainState


class Interrupted(Exception):
    """The run was asked to stop; everything up to the step named is saved."""


class MetricLog:
    """Means of the metrics since the last row, into metrics.jsonl and TensorBoard.

    Rows after `step`, which a run wrote that was killed after its last checkpoint, are dropped.
    """

    def __init__(self, folder: Path, step: int, batch_size: int):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        rows = path.read_text().splitlines() if path.exists() else []
        path.write_text("".join(row + "\n" for row in rows if _step_of(row) <= step))
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._batch_size, self._rows, self._known = batch_size, [], set()
        self.start_clock()

    def start_clock(self) -> None:
        """Steps added so far do not count as training time; the first one was compiled."""
        self._started, self._untimed = time.perf_counter(), len(self._rows)

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Keeps a step's metrics on the device; nothing waits for them."""
        self._rows.append(metrics)

    def write(self, step: int, rejects: Rejects) -> dict[str, float]:
        """Writes and returns the means; a bin that stayed empty has none. Says which kinds of
        examples were passed over for the first time."""
        rows = jax.device_get(self._rows)
        seconds = time.perf_counter() - self._started
        values = {}
        if timed := len(rows) - self._untimed:
            values["samples_per_second"] = timed * self._batch_size / seconds
        for name in rows[0]:
            column = np.array([row[name] for row in rows], np.float64)
            if "loss_" in name:  # the mean of a bin; NaN where it was empty
                column = column[~np.isnan(column)]
            if len(column):
                values[name] = float(column.mean())
        if rejects.total:
            values["rejected_examples"] = rejects.total
        for reason, name in rejects.first.items():
            if reason not in self._known:
                tqdm.write(f"note: passed over {name}: {reason}", file=sys.stderr)
        self._known = set(rejects.first)
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
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
        print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def fit(
    step_fn: Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]],
    init: Callable[[Params], TrainState],
    params: Params,
    frozen: Any,
    data: Batches,
    mesh: Mesh,
    training: Training,
    folder: Path,
    name: str,
    draw_samples: Callable[[TrainState, int], None] | None = None,
) -> TrainState:
    """Trains until `training.steps`, from the newest checkpoint in `folder` where there is one.

    Args:
      step_fn: from `make_train_step`.
      init: weights -> the state before the first step.
      params: these weights; best left in the host's memory, where a run that goes on has no other
        use for them.
      frozen: weights that the loss reads.
      data: endless batches.
      mesh: devices.
      training: how long and how often.
      folder: for checkpoints/, metrics.jsonl and tensorboard/.
      name: of the progress bar.
      draw_samples: called with (state, step) every `training.sample_every` steps.

    Raises:
      InputError: the newest checkpoint is of another model or other data, the loss is not finite,
        or too many examples are damaged.
      Interrupted: Ctrl-C or SIGTERM came; the state is saved.
    """
    frozen = jax.device_put(frozen, replicated(mesh))
    checkpoints = Checkpoints(folder / "checkpoints", training.keep_checkpoints)
    stopped = f"stopped at step {{}} of {training.steps} ({name}), and saved"
    with checkpoints, StopRequest() as stop:
        if checkpoints.latest_step is None:
            state = init(params)
        else:
            state, position = checkpoints.restore(jax.eval_shape(init, params), replicated(mesh))
            data.restore(position)
        first = int(state.step)
        with (
            closing(MetricLog(folder, first, training.batch_size)) as log,
            closing(data.iterate(first, partial(put_batch, mesh=mesh))) as batches,
            tqdm(desc=name, total=training.steps, initial=first, unit="step", mininterval=1) as bar,
        ):
            if first < training.steps:
                bar.set_postfix_str("compiling the first step")
            metrics: dict[str, jax.Array] = {}
            for step in range(first + 1, training.steps + 1):
                previous = metrics
                try:
                    batch = next(batches)
                except Exception:
                    # The data ended it, or a stop that their processes heard of first.
                    if stop.asked or step > first + 1:
                        checkpoints.save(step - 1, state, data.position(step - 1))
                    if stop.asked:
                        raise Interrupted(stopped.format(step - 1)) from None
                    raise
                state, metrics = step_fn(state, frozen, batch)
                # No more than two steps are in flight, so that a stop does not wait for more.
                jax.block_until_ready(previous)
                stopping = stop.asked  # read once: a signal may come at any time
                log.add(metrics)
                if step == first + 1:  # compiling says nothing about the time to come
                    log.start_clock()
                    bar.unpause()
                    bar.set_postfix_str("")
                bar.update()
                last = step == training.steps
                if step % training.log_every == 0 or last:
                    values = log.write(step, data.rejects)
                    if not np.isfinite(values["loss"]):
                        raise InputError(
                            f"the loss of the {name} is {values['loss']} at step {step}; lower "
                            "training.optimizer.learning_rate; older checkpoints are kept"
                        )
                    rate = values.get("samples_per_second", np.nan)
                    bar.set_postfix_str(f"loss {values['loss']:.4f}, {rate:.0f} samples/s", False)
                if step % training.checkpoint_every == 0 or last or stopping:
                    checkpoints.save(step, state, data.position(step))
                if stopping:
                    raise Interrupted(stopped.format(step))
                if draw_samples and training.sample_every and step % training.sample_every == 0:
                    with log.clock_stopped():
                        draw_samples(state, step)
    for line in data.rejects.lines():
        print(f"note: passed over {line}", file=sys.stderr)
    return state
