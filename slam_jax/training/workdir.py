"""The folder of a run: one run at a time, always with the same config."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slam_jax.base.errors import InputError, prefixed
from slam_jax.base.files import is_empty, locked, room_for, write_whole
from slam_jax.base.json_file import read_json
from slam_jax.base.options import Options
from slam_jax.config.options import Config
from slam_jax.config.validate import first_change, freeze, to_json
from slam_jax.parallel.processes import is_main, wait

CONFIG_FILE = "config.json"  # the run's config
RUN_FILE = "run.json"  # command, versions and devices that it was last started with
TEACHER_FILE = "teacher.json"  # which teacher the run began with
SAMPLES = "samples"  # folder of the step ladders
METRICS_FILE = "metrics.jsonl"
TEACHER_METRICS_FILE = "teacher_metrics.json"  # the ladder's metrics of the teacher in few steps


def ladder_file(workdir: Path, step: int) -> Path:
    """Where the step ladder of a step is."""
    return workdir / SAMPLES / f"step_{step:06d}.png"


def read_run(workdir: Path) -> Config:
    """The config of the run in a workdir.

    Raises:
      InputError: there is none.
    """
    path = workdir / CONFIG_FILE
    values = read_json(path, "give the --workdir of a run")
    with prefixed(f"{path}: "):
        return freeze(values)


@contextmanager
def claimed(workdir: Path, config: Options, resume: bool) -> Iterator[None]:
    """Makes the workdir, records the config in it, and keeps other runs out until the end.

    The first process does; the others wait for it.

    Raises:
      InputError: it cannot be written, now or later; another run is using it; or it holds a run and
        `resume` is not asked for, or another config's run, or something that is no run.
    """
    advice = "checkpoints are kept; make room, then go on with --resume"
    with (
        _claim(workdir, config, resume) if is_main() else _join(workdir),
        room_for(workdir, advice),
    ):
        yield


@contextmanager
def _join(workdir: Path) -> Iterator[None]:
    wait("workdir")
    if not (workdir / CONFIG_FILE).exists():
        raise InputError(
            f"{workdir}: not the folder that the first process made; give a --workdir on a file "
            "system that all processes share"
        )
    yield


@contextmanager
def _claim(workdir: Path, config: Options, resume: bool) -> Iterator[None]:
    record = workdir / CONFIG_FILE
    if workdir.exists() and not record.exists() and not is_empty(workdir):
        raise InputError(f"{workdir}: holds no run, but is not empty; choose another --workdir")
    with locked(workdir):
        _record(record, config, resume)
        wait("workdir")
        yield


def _record(record: Path, config: Options, resume: bool) -> None:
    workdir, text = record.parent, to_json(config)
    if record.exists():
        if change := first_change(read_json(record, "choose another --workdir"), config):
            raise InputError(
                f"{workdir}: holds another config's run: {change}; choose another --workdir"
            )
        if not resume:
            raise InputError(
                f"{workdir}: holds a run; add --resume to go on, or choose another --workdir"
            )
    write_whole(record, text)
