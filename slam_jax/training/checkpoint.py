"""Checkpoints of a run: training state, data position and what the run is, written by orbax.

A checkpoint is a folder named by its step: `state` (arrays), `about` (JSON), and the checksums of
their files, since orbax restores changed bytes as they are.
"""

import json
import logging
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from slam_jax.base.errors import InputError
from slam_jax.base.tree import differences
from slam_jax.parallel.processes import exchange
from slam_jax.parallel.sharding import placed
from slam_jax.training import checksums
from slam_jax.training.checkpoint_files import (
    ABOUT,
    DAMAGE,
    STATE,
    compare,
    metric_values,
    read_about,
    reason,
    steps_in,
)

FORMAT = 1  # of what a checkpoint holds
# Seconds: a day for writing, and months for the system's clock to be set meanwhile, by which orbax
# measures. A process that could not write tells the others, which do not wait so long.
TIMEOUT = 100 * 24 * 3600
NEVER_BEGUN = "coroutine .* was never awaited"  # orbax's writes, when another one has failed


class Checkpoints:
    """The checkpoints in one folder, a context manager; saving is asynchronous and atomic.

    All processes of a run make one and call the same methods.

    Args:
      folder: made when it is missing; what a killed run left half-written in it is removed.
      keep: how many of the newest to keep.
      record: JSON-serialisable facts about the run, in every checkpoint; its "teacher" must stay
        the same.
      keep_best: how many to keep besides for their metric.
      metric: the name of this metric; lower is better.

    Raises:
      InputError: the folder cannot be made.
    """

    def __init__(
        self, folder: Path, keep: int, record: dict[str, Any], keep_best: int = 0, metric: str = ""
    ):
        self._folder = folder.absolute()
        self._record = json.loads(json.dumps({"format": FORMAT, **record}))
        self._keep, self._metric = keep, metric
        self._best = _Best(keep_best, metric_values(self._folder, metric))
        self._step = 0  # being saved, or saved last
        self._failed = False
        # Orbax logs tracebacks of what is said here in one line, and asyncio those of each array.
        for logger in ("absl", "asyncio"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", NEVER_BEGUN, RuntimeWarning)
        if not isinstance(sys.unraisablehook, _LateWrites):
            sys.unraisablehook = _LateWrites(sys.unraisablehook)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = self._open()
        except OSError as error:
            raise InputError(
                f"{self._folder}: cannot be written to ({reason(error)}); choose another workdir"
            ) from error

    def _open(self) -> ocp.CheckpointManager:
        policies = [ocp.checkpoint_managers.LatestN(self._keep), self._best]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # a damaged file must not keep a run from starting
            async_options=ocp.AsyncOptions(
                timeout_secs=TIMEOUT,
                barrier_sync_fn=_barrier(),
                post_finalization_callback=self._write_checksums,
                create_directories_asynchronously=False,  # else its threads wait when that fails
            ),
        )
        handlers = {STATE: ocp.StandardCheckpointHandler(), ABOUT: ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        if not self._failed:  # else there is nothing to wait for, and the others do not wait either
            with self._saving():
                self._manager.close()

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        position: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Saves unless the step is there. The state may be donated as soon as this returns.

        Args:
          step: greater than those of the checkpoints there.
          state: a pytree of arrays.
          position: of the data; JSON-serialisable.
          metrics: what `best_step` compares.

        Raises:
          InputError: this checkpoint or the one before it cannot be written.
        """
        if step == self.latest_step:
            return
        metrics = {name: value for name, value in (metrics or {}).items() if math.isfinite(value)}
        about = {**self._record, "position": position, "metrics": metrics}
        about = json.loads(json.dumps(about))  # the caller's may change while it is written
        with self._saving():
            self._manager.wait_until_finished()
        self._step = step
        self._best.values.pop(step, None)  # of a damaged one
        if self._metric in metrics:
            self._best.values[step] = metrics[self._metric]
        with self._saving():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{STATE: ocp.args.StandardSave(state), ABOUT: ocp.args.JsonSave(about)}
                ),
            )

    @contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore's are ValueErrors
            self._failed = True
            raise InputError(
                f"{self._folder}: step {self._step} could not be saved ({reason(error)}); older "
                "checkpoints are kept; remove the cause, then go on with --resume"
            ) from error

    def _write_checksums(self) -> None:
        """Orbax calls it in one process when all is written, before the folder gets its name."""
        (folder,) = self._folder.glob(f"{self._step}.orbax-checkpoint-tmp*")
        checksums.write(folder)

    def restore(self, like: Any, shardings: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest state that all processes can read, and the data position.

        Damaged checkpoints that are newer are moved aside, which is said on stderr.

        Args:
          like: the state, of arrays or of ShapeDtypeStructs.
          shardings: where the arrays go, a pytree of Shardings.

        Returns:
          None where there is no checkpoint.

        Raises:
          InputError: the checkpoint is of another model or teacher or of a newer format, or none
            can be read; nothing has changed on disk.
        """
        wanted = placed(like, shardings)
        with self._saving():
            self._manager.wait_until_finished()
        damaged: dict[int, str] = {}
        for step in reversed(json.loads(exchange(json.dumps(steps_in(self._folder)))[0])):
            if whys := [why for why in exchange(self._damage(step)) if why]:
                damaged[step] = whys[0]
                continue
            found = self._read(step, wanted)
            self._move_aside(damaged, step)
            return found
        if damaged:
            each = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
            raise InputError(
                f"{self._folder}: no checkpoint can be read ({each}); put a copy back, or start "
                "again in another workdir"
            )
        return None

    def _damage(self, step: int) -> str:
        """What is wrong with this process's share of a checkpoint's files; "" for nothing."""
        folder = self._folder / str(step)
        try:
            if read_about(folder)["format"] <= FORMAT:  # another one may have other checksums
                checksums.check(folder, jax.process_index(), jax.process_count())
        except DAMAGE as error:
            return reason(error)
        return ""

    def _read(self, step: int, wanted: Any) -> tuple[Any, dict[str, Any]]:
        """State and position of a checkpoint that is not damaged."""
        folder = self._folder / str(step)
        about = read_about(folder)
        if about["format"] > FORMAT:
            raise InputError(
                f"{folder}: made by a newer slam_jax (format {about['format']}, this one reads "
                f"{FORMAT}); update slam_jax"
            )
        there, here = about.get("teacher"), self._record.get("teacher")
        for name, *_ in differences(there, here):
            raise InputError(
                f"{folder}: made with another teacher ({f'its {name}' if name else 'it'} is not "
                "this run's); go on with that teacher, or choose another workdir"
            )
        handler: Any = ocp.StandardCheckpointHandler()  # says that it takes paths of etils alone
        path = folder / STATE
        try:
            compare(folder, wanted, handler.metadata(path).tree, "the model that made it")
            state = handler.restore(path, args=ocp.args.StandardRestore(wanted))
        finally:
            handler.close()
        return state, about["position"]

    def _move_aside(self, damaged: dict[int, str], step: int) -> None:
        """Makes way for the steps to come again, under names that nothing takes for a step."""
        if not damaged:
            return
        with self._saving():
            self._manager.close()
        failure = ""
        if jax.process_index() == 0:
            for number, why in damaged.items():
                names = (f"{number}.damaged{n or ''}" for n in count())
                name = next(name for name in names if not (self._folder / name).exists())
                try:
                    (self._folder / str(number)).rename(self._folder / name)
                except OSError as error:
                    failure = f"{self._folder}/{number}: damaged, cannot be moved aside"
                    failure += f" ({reason(error)}); remove it"
                    break
                print(
                    f"note: {self._folder}/{number} is damaged ({why}); it is now {name}, and the "
                    f"run goes on from step {step}",
                    file=sys.stderr,
                )
        if failure := exchange(failure)[0]:
            self._failed = True
            raise InputError(failure)
        self._manager = self._open()


class _Best:
    """An orbax policy: keeps the checkpoints with the lowest metric. Orbax's own reads metrics from
    files of its own, and a damaged one would keep a run from starting."""

    def __init__(self, keep: int, values: dict[int, float]):
        self._keep, self.values = keep, values

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps = [c.step for c in checkpoints if c.step in self.values]
        best = sorted(steps, key=lambda step: (self.values[step], -step))[: self._keep]
        return [c.step in best for c in checkpoints]


class _LateWrites:
    """A hook of sys: passes over the writes that end when another one has failed. Orbax has closed
    the event loop that each of them would tell, and Python would show a traceback for each."""

    def __init__(self, before: Callable[[Any], None]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._before(unraisable)


def _barrier() -> Callable[..., None]:
    """Orbax's, but a process that could not write does not wait for the others: it has to say why
    it fails."""
    wait = ocp.multihost.get_barrier_sync_fn()

    def barrier(*, key: str, timeout_ms: int) -> None:
        failing = sys.exc_info()[0] is not None
        if not failing or threading.current_thread() is threading.main_thread():
            wait(key=key, timeout_ms=timeout_ms)

    return barrier
