"""The command line: teacher, distillation, evaluation, export.

python -m slam_jax.main --config configs/digits.py [--config.method.gamma=one] [--workdir runs/lcm]
[--resume]
"""

import json
import re
import resource
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from slam_jax import runtime
from slam_jax.checkpoint import read_position, steps_in
from slam_jax.config import Config
from slam_jax.data.batches import check_position
from slam_jax.distill import distill
from slam_jax.draw import student_sampler, teacher_sampler
from slam_jax.errors import BackendError, InputError, options_of, prefixed
from slam_jax.evaluate import Ladder, to_markdown, write_report
from slam_jax.files import write_whole
from slam_jax.freeze import first_change, freeze, to_json
from slam_jax.jobs.digits import DigitsJob
from slam_jax.jobs.job import Job
from slam_jax.jobs.text_to_image import TextToImageJob
from slam_jax.loop import Interrupted
from slam_jax.models.functional import cast
from slam_jax.models.pipeline import student_config, student_params
from slam_jax.sampler import ddim_timesteps
from slam_jax.schedule import distillation_grid
from slam_jax.sharding import make_mesh, replicated

CONFIG_FILE = "config.json"


def parse(argv: list[str]) -> tuple[Config, Path, bool]:
    """Reads the command line into (config, workdir, resume).

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
    return config, Path(values.workdir or Path("runs") / config.name), values.resume


def claim_workdir(workdir: Path, config: Config, resume: bool) -> None:
    """Makes the workdir and records the config in it.

    Raises:
      InputError: it holds a run and `resume` is not asked for, or another config's run, or
        something that is no run.
    """
    record, text = workdir / CONFIG_FILE, to_json(config)
    if record.exists():
        try:
            recorded = json.loads(record.read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"{record}: damaged ({error}); choose another --workdir") from error
        if change := first_change(recorded, json.loads(text)):
            raise InputError(
                f"{workdir}: holds another config's run: {change}; choose another --workdir"
            )
        if not resume:
            raise InputError(
                f"{workdir}: holds a run; add --resume to go on, or choose another --workdir"
            )
    elif workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise InputError(f"{workdir}: holds no run, but is not empty; choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(record, text)


def build(config: Config, workdir: Path) -> tuple[Mesh, Job]:
    """The devices and the job; checks whatever of the config only these can tell.

    Raises:
      InputError: devices, batch size, teacher or grid do not fit; names the key.
    """
    with options_of("config"):
        mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    if config.training.batch_size % mesh.size:
        raise InputError(
            f"config.training.batch_size = {config.training.batch_size} must be divisible by the "
            f"{mesh.size} devices"
        )
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
    mesh, job = build(config, workdir)
    source = job.source()
    if resume and (steps := steps_in(workdir / "checkpoints")):
        with prefixed("config.data: "):
            check_position(source, read_position(workdir / "checkpoints", steps[-1]))
    claim_workdir(workdir, config, resume)
    pipeline, method, precision = job.pipeline, config.method, config.precision
    unet = student_config(pipeline.unet, method.conditioning)
    weights = job.weights(mesh)
    initial = student_params(weights["unet"], unet)
    frozen = {**weights, "unet": cast(weights["unet"], precision.teacher)}
    frozen = jax.device_put(frozen, replicated(mesh))
    ladder = Ladder(
        teacher_sampler(pipeline, method.w, precision.teacher),
        student_sampler(pipeline, unet, method.num_ddim_timesteps, precision.student),
        frozen,
        job.ladder_prompts(),
        config.evaluation,
        config.seed,
    )

    def draw_samples(params, step):
        job.save_ladder(ladder, params, workdir / "samples" / f"step_{step:06d}.png")

    student = distill(config, pipeline, initial, frozen, source, workdir, mesh, draw_samples)
    student = replace(student, info={"teacher": job.teacher_info(), **student.info})
    job.export(student, workdir / "export")
    params = jax.device_put(student.params, replicated(mesh))
    job.save_ladder(ladder, params, workdir / "samples" / "ladder.png")
    rows = job.measure(ladder, frozen, params)
    facts = {
        "seconds": time.perf_counter() - started,
        "peak_memory_gb": peak_memory_gb(),
        "devices": [str(device) for device in jax.devices()],
        **student.info,
    }
    write_report(workdir, rows, facts)
    return rows


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    runtime.configure()
    argv = sys.argv[1:] if argv is None else argv
    try:
        config, workdir, resume = parse(argv)
        rows = run(config, workdir, resume)
    except (InputError, BackendError) as error:
        sys.exit(f"error: {error}")
    except (Interrupted, KeyboardInterrupt) as stop:
        resume = [] if "--resume" in argv else ["--resume"]
        again = shlex.join([sys.executable, "-m", "slam_jax.main", *argv, *resume])
        what = str(stop) or "interrupted; its checkpoints, if it had come to one, are kept"
        print(f"\n{what}. To go on:\n  {again}", file=sys.stderr)
        sys.exit(130)
    print(f"\n{to_markdown(rows)}\npictures: {workdir / 'samples'}\nstudent:  {workdir / 'export'}")


if __name__ == "__main__":
    main()
