"""The loop around the step: batches, metrics, checkpoints, pictures, and all that may end a run."""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from slam_jax.base.errors import InputError
from slam_jax.config.options import Training
from slam_jax.data.batches import Batches
from slam_jax.formats.safetensors import save_arrays
from slam_jax.parallel.processes import Votes, as_first, is_main, wait
from slam_jax.parallel.sharding import rows_here, shard, shard_batch, shardings_of
from slam_jax.training.checkpoint import Checkpoints
from slam_jax.training.metric_log import MetricLog, read_rows
from slam_jax.training.patience import Patience
from slam_jax.training.step import Init, Params, Step, TrainState
from slam_jax.training.stop_request import StopRequest
from slam_jax.training.wandb_log import Wandb

# (state, step) -> what was measured.
DrawSamples = Callable[[TrainState, int], dict[str, float]]

REPLAY = "replay"  # folder of the batches whose loss or gradient was not finite


class Interrupted(Exception):
    """The run was asked to stop; everything up to the step named is saved."""


@dataclass(frozen=True)
class TrainingRun:
    """What is trained, on what, for how long, and where it is kept.

    Attributes:
      step: from `make_train_step`.
      init: weights on the mesh -> the state before the first step.
      data: endless batches.
      mesh: devices.
      options: how long and how often.
      folder: for checkpoints/, replay/, metrics.jsonl and tensorboard/.
      name: of the progress bar.
      record: what a checkpoint says of the run, see `Checkpoints`.
      draw_samples: called with (state, step) every `options.sample_every` steps; what it returns
        joins the metrics.
      report: called when that has been logged.
      wandb: where the metrics are logged to besides.
    """

    step: Step
    init: Init
    data: Batches
    mesh: Mesh
    options: Training
    folder: Path
    name: str
    record: dict[str, Any]
    draw_samples: DrawSamples | None = None
    report: Callable[[], None] | None = None
    wandb: Wandb | None = None


class Events:
    """What happens beside the steps: metrics, pictures, checkpoints, and what ends the run.

    All processes decide the same at the same step: by the step's number, by numbers that all have,
    or by vote.
    """

    def __init__(
        self, run: TrainingRun, checkpoints: Checkpoints, stop: StopRequest, state: TrainState
    ):
        self._run, self._checkpoints, self._stop = run, checkpoints, stop
        self._first, self._skipped = int(state.step), int(state.skipped)
        self._has_drawn = False
        self._votes, self._saved = Votes(2), time.monotonic()
        self._previous: tuple[int, dict[str, jax.Array], dict[str, jax.Array]] | None = None
        best = run.options.patience, run.options.best_metric
        self._patience = Patience(
            *best, [row for row in read_rows(run.folder) if row["step"] <= self._first]
        )
        self.over = run.options.patience > 0 and as_first(self._patience.is_over)
        self._log = MetricLog(run.folder, self._first, run.options.batch_size, run.wandb)
        self._bar = tqdm(
            desc=run.name,
            total=run.options.steps,
            initial=self._first,
            unit="step",
            mininterval=1,
            disable=not is_main(),
        )
        if self._first < run.options.steps and not self.over:
            self._bar.set_postfix_str("compiling the first step, once; minutes on a CPU")

    def after(self, step: int, state: TrainState, metrics: dict, batch: dict) -> None:
        """Looks after everything, when the step is on its way to the devices."""
        training, last = self._run.options, step == self._run.options.steps
        # No more than two steps are in flight, so that a stop does not wait for more.
        self._look_at_previous()
        self._previous = step, metrics, batch
        self._stop.is_harmless = False
        self._log.add(metrics)
        if step == self._first + 1:  # compiling says nothing about the time to come
            self._log.start_clock()
            self._saved = time.monotonic()
            self._bar.unpause()
            self._bar.set_postfix_str("")
        self._bar.update()
        stopping, saving = self._votes(self._stop.asked, self._is_save_due())
        too_many = self._skipped >= training.max_skipped
        saving |= step % training.checkpoint_every == 0 or last or stopping or too_many
        if saving:  # which waits for this step; and a run that goes on would not look at it
            self._look_at_previous()
        values = self._measure(step, state, last, stopping)
        if self._patience.over(values):
            self.over = saving = True
            if is_main():
                name, times = training.best_metric, training.patience
                line = f"{name} has not become lower {times} times; the {self._run.name} ends"
                tqdm.write(f"note: {line} at step {step}", file=sys.stderr)
        if saving:
            self.save(step, state, values)
        if self._skipped >= training.max_skipped:
            raise InputError(
                f"{self._skipped} steps of the {self._run.name} were not finite, the last at or "
                f"before step {step}, and changed nothing; their batches are in "
                f"{self._run.folder / REPLAY}; lower training.optimizer.learning_rate, or raise "
                "training.max_skipped to go on"
            )
        if stopping:
            raise Interrupted(self._stopped_at(step))

    def end(self, step: int) -> None:
        """Hears, after the last step, who asked for a stop since the vote before."""
        stopping, _ = self._votes(self._stop.asked, False)
        if stopping:
            raise Interrupted(self._stopped_at(step))

    def data_ended(self, step: int, state: TrainState) -> None:
        """Saves, where that is possible, when no batch came after `step`; the data ended it, or a
        stop that their processes heard of first."""
        if jax.process_count() > 1:
            return  # the others do not know of it, and a checkpoint takes all
        if self._stop.asked or step > self._first:
            self._look_at_previous()
            self.save(step, state)
        if self._stop.asked:
            raise Interrupted(self._stopped_at(step))

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Saves the state, where the data are, and what was measured in this very step."""
        self._checkpoints.save(step, state, self._run.data.position(step), metrics)
        self._saved = time.monotonic()

    def close(self) -> None:
        """Ends bar and log."""
        self._bar.close()
        self._log.close()

    def _stopped_at(self, step: int) -> str:
        return f"stopped at step {step} of {self._run.options.steps} ({self._run.name}), and saved"

    def _is_save_due(self) -> bool:
        """Whether the newest checkpoint is older than it may get; true once for each."""
        due = time.monotonic() - self._saved >= 60 * self._run.options.checkpoint_minutes > 0
        if due:
            self._saved = time.monotonic()
        return due

    def _look_at_previous(self) -> None:
        """Waits for the step before; says so where it was skipped, and keeps its batch."""
        if self._previous is None:
            return
        step, metrics, batch = self._previous
        self._previous, skipped = None, int(metrics["skipped"])
        if skipped > self._skipped:
            self._skipped = skipped
            part = f"{jax.process_index()}_of_{jax.process_count()}"
            path = self._run.folder / REPLAY / f"step_{step:06d}.process_{part}.safetensors"
            path.parent.mkdir(exist_ok=True)
            save_arrays(path, rows_here(batch))
            tqdm.write(
                f"note: step {step} of the {self._run.name} changed nothing: loss "
                f"{metrics['loss']:.4g}, gradient norm {metrics['grad_norm']:.4g}; its batch is "
                f"in {path}",
                file=sys.stderr,
            )

    def _measure(
        self, step: int, state: TrainState, last: bool, stopping: bool
    ) -> dict[str, float]:
        """What is known of this very step: drawn, logged, shown."""
        training, drawn = self._run.options, {}
        every = training.sample_every
        drawing = self._run.draw_samples and every and step % every == 0 and not stopping
        if self._run.draw_samples and drawing:
            if not self._has_drawn:
                self._bar.set_postfix_str("compiling the samplers, once; minutes on a CPU")
            with self._log.clock_stopped():
                drawn = self._run.draw_samples(state, step)
                wait("the pictures are drawn")
            self._has_drawn = True
            self._bar.unpause()  # which leaves this time out of the time to come
        if not (drawing or step % training.log_every == 0 or last):
            return {}
        values = self._log.write(step, self._run.data.rejects, drawn)
        rate, loss = values.get("samples_per_second", nan), values.get("loss", nan)
        self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} samples/s", False)
        if drawing and self._run.report:
            with self._log.clock_stopped():
                self._run.report()
        return values


def fit(run: TrainingRun, params: Params, frozen: Any) -> TrainState:
    """Trains until `run.options.steps`, from the newest checkpoint where there is one.

    Args:
      run: what is trained.
      params: weights before the first step, in the host's memory.
      frozen: weights on the mesh that the loss reads.

    Raises:
      InputError: the newest checkpoint is of another model, another teacher or other data, it
        cannot be saved, too many steps were not finite, or too many examples are damaged.
      Interrupted: Ctrl-C or SIGTERM came, to any process; the state is saved.
    """
    options, data, mesh = run.options, run.data, run.mesh
    keep = options.keep_checkpoints, run.record, options.keep_best, options.best_metric
    with Checkpoints(run.folder / "checkpoints", *keep) as checkpoints, StopRequest() as stop:
        like = jax.eval_shape(run.init, params)
        if found := checkpoints.restore(like, shardings_of(like, mesh)):
            state, position = found
            data.restore(position)
        else:
            state = run.init(shard(params, mesh))
        step_fn, first = run.step, int(state.step)
        with (
            closing(Events(run, checkpoints, stop, state)) as events,
            closing(data.iterate(first, partial(shard_batch, mesh=mesh))) as batches,
        ):
            for step in range(first + 1, options.steps + 1):
                if events.over:
                    break
                try:
                    batch = next(batches)
                except Exception:
                    events.data_ended(step - 1, state)
                    raise
                if step == first + 1:
                    step_fn = step_fn.lower(state, frozen, batch).compile()
                    # Who compiled first would wait for the others' answers, and not for long.
                    wait("the step is compiled")
                state, metrics = step_fn(state, frozen, batch)
                events.after(step, state, metrics, batch)
            events.end(options.steps)
    for line in data.rejects.lines():
        print(f"note: passed over {line}", file=sys.stderr)
    return state
