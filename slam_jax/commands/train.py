"""The command line: teacher, distillation, evaluation, export.

python -m slam_jax.main --config configs/digits.py [--config.method.gamma=one] [--workdir runs/lcm]
[--resume] [--distributed]
"""

import dataclasses
import os
import re
import resource
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from slam_jax.base.errors import BackendError, InputError, options_of, prefixed
from slam_jax.config.options import Config
from slam_jax.config.validate import freeze
from slam_jax.data.batches import check_position
from slam_jax.drawing.ladder import Ladder, to_markdown, write_report
from slam_jax.drawing.samplers import on_whole, student_sampler, teacher_sampler
from slam_jax.families.family import student_config, student_params
from slam_jax.method.sampler import ddim_timesteps
from slam_jax.method.schedule import distillation_grid
from slam_jax.models.functional import cast
from slam_jax.parallel import runtime
from slam_jax.parallel.processes import compare, is_main, join, together
from slam_jax.parallel.sharding import make_mesh, shard
from slam_jax.recipes.digits import DigitsJob
from slam_jax.recipes.distill import distill
from slam_jax.recipes.job import Job
from slam_jax.recipes.text_to_image import TextToImageJob
from slam_jax.training.checkpoint_files import read_position
from slam_jax.training.loop import Interrupted
from slam_jax.training.step import check_batch_size
from slam_jax.training.workdir import claimed


class Command(NamedTuple):
    """A command line.

    Attributes:
      config: the run.
      workdir: its folder.
      resume: whether it may go on with a run that is there.
      distributed: whether this is one of several processes of the run.
    """

    config: Config
    workdir: Path
    resume: bool
    distributed: bool


def parse(argv: list[str]) -> Command:
    """Reads the command line.

    Raises:
      InputError: an unknown flag, an unreadable config file, an unknown key, a wrong value.
    """
    values, command = flags.FlagValues(), ["slam_jax.main", *argv]
    config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config()", flag_values=values, sys_argv=command
    )
    flags.DEFINE_string(
        "workdir", None, "folder of the run; default: runs/<config.name>", flag_values=values
    )
    flags.DEFINE_bool(
        "resume", False, "go on with the run in the workdir, if there is one", flag_values=values
    )
    flags.DEFINE_bool(
        "distributed",
        False,
        "this is one of several processes, which SLURM, GKE or a TPU pod tell of one another, or "
        "else JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID",
        flag_values=values,
    )
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    try:
        rest = values(command)[1:]
        if values.help:
            print(f"{__doc__}\n{values.get_help()}")
            sys.exit(0)
        if values["config"].value is None or rest:
            raise InputError(
                f"expected --config FILE, such as --config configs/digits.py; got {rest or 'none'}"
            )
        config = freeze(values.config)
    except (AttributeError, KeyError) as error:
        # ml_collections: the unknown key in quotes, then a line with the nearest valid one; at
        # times as the text of a text.
        text = re.sub(r"\\n|\\'|'", " ", str(error.args[0]))
        raise InputError(f"the config has no option {' '.join(text.split())}") from error
    except (flags.Error, OSError) as error:
        text = str(error)  # of an error inside the config file, the whole traceback
        text = text.strip().splitlines()[-1] if "Traceback" in text else text
        text = " ".join(text.split())
        text = re.sub(r"^\w+Error: |.*Failed loading config file config_config ", "", text)
        raise InputError(text) from error
    workdir = Path(values.workdir or Path("runs") / config.name)
    return Command(config, workdir, values.resume, values.distributed)


def build(config: Config, workdir: Path) -> tuple[Mesh, Job]:
    """The devices and the job; checks whatever of the config only these can tell.

    Raises:
      InputError: devices, batch size, teacher or grid do not fit; names the key.
    """
    with options_of("config"):
        mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    with options_of("config.training"):
        check_batch_size(config.training, mesh)
    kind = DigitsJob if config.data.source == "digits" else TextToImageJob
    job = kind(config, workdir, mesh)
    timesteps = job.pipeline.schedule.num_train_timesteps
    with options_of("config.evaluation"):
        ddim_timesteps(max(config.evaluation.teacher_steps), timesteps)
    with options_of("config.method"):
        distillation_grid(timesteps, config.method.num_ddim_timesteps)
    return mesh, job


def peak_memory_gb() -> float:
    """The most memory that this process held so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def run(config: Config, workdir: Path, resume: bool = False) -> list[dict]:
    """Teacher, distillation, evaluation and export; returns the rows of the report.

    Raises:
      InputError: something in the config or the workdir does not fit.
      Interrupted: Ctrl-C; the state is saved.
    """
    started = time.perf_counter()
    runtime.probe()
    same = {"workdir": str(workdir), "resume": resume, "versions": runtime.versions()}
    compare({"config": dataclasses.asdict(config), **same})
    mesh, job = build(config, workdir)
    if is_main():
        kind, count = jax.devices()[0].device_kind, jax.process_count()
        axes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
        print(f"{mesh.size} devices ({kind}), {axes}, processes: {count}", file=sys.stderr)
    if resume and (position := read_position(workdir / "checkpoints")):
        with prefixed("config.data: "):
            check_position(job.source(), position)
    with claimed(workdir, config, resume):
        rows, facts = _run(config, workdir, mesh, job)
        if is_main():
            seconds = time.perf_counter() - started
            write_report(workdir, rows, {"seconds": seconds, **facts})
    return rows


def _run(
    config: Config, workdir: Path, mesh: Mesh, job: Job
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What `run` does in a workdir of its own: (rows, facts) of the report."""
    pipeline, method, precision = job.pipeline, config.method, config.precision
    unet = student_config(pipeline.unet, method.conditioning)
    weights = job.weights(mesh)
    initial = student_params(weights["unet"], unet)
    frozen = shard({**weights, "unet": cast(weights["unet"], precision.teacher)}, mesh)
    draw_teacher = teacher_sampler(pipeline, method.w, precision.teacher)
    draw_student = student_sampler(pipeline, unet, method.num_ddim_timesteps, precision.student)
    ladder = Ladder(
        on_whole(draw_teacher, mesh, precision.teacher),
        on_whole(draw_student, mesh, precision.student),
        frozen,
        job.ladder_prompts(),
        config.evaluation,
        config.seed,
    )
    samples = workdir / "samples"

    def draw_samples(params, step):
        return job.save_ladder(ladder, params, samples / f"step_{step:06d}.png")

    student = distill(
        config,
        pipeline,
        initial,
        frozen,
        job.teacher_info()["fingerprints"],
        job.source(),
        workdir,
        mesh,
        draw_samples,
    )
    student = replace(student, info={"teacher": job.teacher_info(), **student.info})
    if is_main():
        job.export(student, workdir / "export")
    params = shard(student.params, mesh)
    job.save_ladder(ladder, params, samples / "ladder.png")
    rows = job.measure(ladder, frozen, params)
    return rows, {
        "peak_memory_gb": peak_memory_gb(),
        "devices": [str(device) for device in jax.devices()],
        **student.info,
    }


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    argv, speaks = sys.argv[1:] if argv is None else argv, True
    try:
        command = parse(argv)
        runtime.configure(alone=not command.distributed)
        if command.distributed:
            join()
        elif os.environ.get("JAX_NUM_PROCESSES", "1") != "1":
            raise InputError(
                "JAX_NUM_PROCESSES is set, and --distributed is not given; give it, or unset the "
                "variable for a run in one process"
            )
        speaks = is_main()  # asked now: afterwards every process is alone
        with together(agreed=(Interrupted,)):
            rows = run(command.config, command.workdir, command.resume)
    except (InputError, BackendError) as error:
        sys.exit(f"error: {error}")
    except (Interrupted, KeyboardInterrupt) as stop:
        resume = [] if "--resume" in argv else ["--resume"]
        again = shlex.join([sys.executable, "-m", "slam_jax.main", *argv, *resume])
        again = "start all processes again with --resume" if command.distributed else again
        what = str(stop) or "interrupted; its checkpoints, if it had come to one, are kept"
        if speaks:
            print(f"\n{what}. To go on:\n  {again}", file=sys.stderr)
        sys.exit(130)
    if speaks:
        samples, export = (command.workdir / name for name in ("samples", "export"))
        print(f"\n{to_markdown(rows)}\npictures: {samples}\nstudent:  {export}")


if __name__ == "__main__":
    main()
