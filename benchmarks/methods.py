r"""Methods side by side at equal compute: SLAM, LCM, SLAM as published, PCM; several seeds each.

    PYTHONPATH=. python benchmarks/methods.py digits --passes 864000
    PYTHONPATH=. python benchmarks/methods.py emoji --passes 72000 --data emoji:data/emoji \
        --latents runs/emoji_latents --judge runs/judge
    PYTHONPATH=. python benchmarks/methods.py emoji_flow --passes 72000 --data emoji:data/emoji \
        --latents runs/emoji_flow_latents --judge runs/judge

Compute is counted in network passes, of which a gradient takes three: a step of SLAM with two
gammas is 9 for each example, one of the others 6. Each run ends after the same number of passes,
to half a step for each checkpoint; the checkpoints on the way give curves, over passes and over
seconds. All students and the teacher draw the same prompts from the same noise.

Writes methods_TASK.json, .md, .png and _pictures.png into benchmarks/results/ (or --out). What is
in --runs is not done again: an interrupted comparison goes on where it stopped, and more seeds can
join it.
"""

import argparse
import gc
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import methods_tables
import numpy as np
from methods_measure import Measure
from methods_tasks import TASKS
from ml_collections import ConfigDict
from result import FOLDER, made_by, positive

from slam_jax.base.errors import BackendError, InputError
from slam_jax.base.json_file import read_json, write_json
from slam_jax.config.command_line import read_recipe
from slam_jax.config.options import Config
from slam_jax.config.validate import first_change, freeze, with_method
from slam_jax.method.slam import Slam
from slam_jax.method.sub_path import SubPathMethod
from slam_jax.parallel import runtime
from slam_jax.recipes.run import run as train
from slam_jax.training.loop import Interrupted
from slam_jax.training.metric_log import read_rows
from slam_jax.training.workdir import CONFIG_FILE

# What each changes of the recipe, whose method is this project's variant of SLAM.
VARIANTS: dict[str, dict[str, Any]] = {
    "SLAM": {},
    "LCM": {"method.name": "lcm"},
    "SLAM, published": {"method.name": "slam_literal"},
    "PCM, 4 phases": {"method.name": "pcm", "method.phases": 4},
}
EVERY = ("checkpoint_every", "log_every")
# Options that follow from the command line, or that nothing here reads.
SET_HERE = (
    *("seed", "evaluation"),
    *(f"training.{name}" for name in ("steps", "sample_every", "keep_checkpoints", *EVERY)),
)


def passes_of(method: SubPathMethod) -> int:
    """Network passes of a step for each example: teacher, target, and three for each gradient."""
    gammas = method.gamma_count if isinstance(method, Slam) else 1
    return method.solver_substeps * (2 if method.w else 1) + 1 + 3 * gammas


def config_of(changes: dict[str, Any], seed: int, options: argparse.Namespace) -> Config:
    """The run of one variant and seed.

    Args:
      changes: the variant's options, by keys such as "method.name".
      seed: of all random draws.
      options: the command line.

    Raises:
      InputError: an option does not fit; names it.
    """
    values = read_recipe(options.task.recipe)
    method = with_method(values.method.to_dict(), changes.get("method.name"))
    values = ConfigDict({**values.to_dict(), "method": method, "seed": seed}).lock()
    options.task.prepare(values)
    change(values, changes, "--variant")
    change(values, options.change, "--change")
    draft = freeze(values)
    assert isinstance(draft.method, SubPathMethod)
    a_step = draft.training.batch_size * passes_of(draft.method)
    if not (every := round(options.passes / a_step / options.points)):
        raise InputError(f"--passes {options.passes}: too few for --points {options.points}")
    values.training.update(
        dict.fromkeys(EVERY, every),
        steps=every * options.points,
        keep_checkpoints=options.points + 9,  # with those of Ctrl-C
        sample_every=0,
    )
    # Here pictures are measured afterwards: more of them, and of all checkpoints.
    few = dict(student_steps=(4,), teacher_steps=(4,), samples=0, batch=1, prompts=(), metrics=())
    values.evaluation.update(few)
    return freeze(values)


def change(values: ConfigDict, changes: dict[str, Any], flag: str) -> None:
    """Changes options.

    Args:
      values: a config.
      changes: key, such as "method.w" -> value.
      flag: that says so.

    Raises:
      InputError: there is no such option, or the comparison sets it.
    """
    for key, value in changes.items():
        if key in SET_HERE or key.split(".")[0] in SET_HERE:
            raise InputError(f"{flag} {key}={value}: it follows from the other options")
        try:
            values.update_from_flattened_dict({key: value})
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{flag} {key}={value}: {error.args[0]}") from error


def changes_of(texts: Sequence[str]) -> dict[str, Any]:
    """Those of "method.w=0"."""
    return {key: literal(text) for key, _, text in (one.partition("=") for one in texts)}


def literal(text: str) -> Any:
    """A value as JSON has it, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def rows_of(name: str, seed: int, options: argparse.Namespace, measure: Measure) -> Iterator[dict]:
    """Trains one student, where that is not done yet, and measures its checkpoints: a row for each
    of them and each number of steps.

    Raises:
      InputError: the folder holds another run.
      Interrupted: Ctrl-C; the same command goes on.
    """
    config = config_of(options.variants[name], seed, options)
    assert isinstance(config.method, SubPathMethod)
    workdir = workdir_of(name, options, seed)
    if not (workdir / "summary.json").exists():
        print(f"{name}, seed {seed}: {config.training.steps} steps", file=sys.stderr)
        train(config, workdir, resume=True)
    elif different := first_change(read_json(workdir / CONFIG_FILE, "remove it"), config):
        raise InputError(f"{workdir}: another run: {different}; choose other --runs")
    # The first row has the time of compiling.
    pace = np.mean([1 / row["samples_per_second"] for row in read_rows(workdir)[1:]])
    size, record = config.training.batch_size, workdir / "measured.json"
    known = read_json(record, "remove it") if record.exists() else {}
    if known.get("protocol") != measure.protocol:
        known = {"protocol": measure.protocol, "checkpoints": {}}
    every, last = config.training.checkpoint_every, config.training.steps
    for step in range(every, last + 1, every):
        if str(step) not in known["checkpoints"]:
            measured = measure.student(workdir, config, step, whole=step == last)
            known["checkpoints"][str(step)] = measured
            write_json(record, known)
        cost = {"passes": step * size * passes_of(config.method), "training_steps": step}
        cost["seconds"] = step * size * float(pace)
        for row in known["checkpoints"][str(step)]:
            yield {"student": name, "seed": seed, **cost, **row}


def workdir_of(name: str, options: argparse.Namespace, seed: int | None = None) -> Path:
    """The folder of a run; of the first seed where none is said."""
    return options.runs / slug(name) / f"seed_{options.first_seed if seed is None else seed}"


def slug(name: str) -> str:
    """The name of a student's folder."""
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("task", choices=TASKS)
    add("--passes", type=positive, required=True, help="network passes of a run")
    add("--points", type=positive, default=3, help="checkpoints of a run that are measured")
    add("--seeds", type=positive, default=5)
    add("--first-seed", type=int, default=0, help="choose by some seeds, report others")
    add("--methods", help=f"between semicolons, of {'; '.join(VARIANTS)}")
    add(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "KEY=VALUE"),
        help="one more: its name, and options of config; may be repeated",
    )
    add("--change", nargs="+", default=[], metavar="KEY=VALUE", help="options of config, of all")
    dtypes = ("float32", "bfloat16")
    add("--dtype", choices=dtypes, default="float32", help="what students draw in")
    add("--name", help="of the result's files; default: methods_TASK")
    add("--runs", type=Path, help="folder of all runs; default: runs/NAME")
    add("--out", type=Path, default=FOLDER, help="folder of the result")
    for task in TASKS.values():
        task.add_options(parser)
    options = parser.parse_args(argv)
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: an interval needs 2 or more")
    if options.points < 2:
        parser.error(f"--points {options.points}: the speed is measured after the first; 2 or more")
    usual = [name for name in VARIANTS if name not in TASKS[options.task].left_out]
    names = [name.strip() for name in options.methods.split(";")] if options.methods else usual
    for name in names:
        if name not in VARIANTS:
            parser.error(f"--methods {name}: expected of {'; '.join(VARIANTS)}")
    options.variants = {name: VARIANTS[name] for name in names}
    options.variants |= {name: changes_of(changes) for name, *changes in options.variant}
    options.change = changes_of(options.change)
    if len({slug(name) for name in options.variants}) < len(options.variants):
        parser.error(f"--variant: two names for one folder among {'; '.join(options.variants)}")
    options.name = options.name or f"methods_{options.task}"
    options.runs = options.runs or Path("runs") / options.name
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    made = made_by("methods.py", argv, ("jax", "flax", "optax", "numpy"))
    try:
        runtime.configure()
        options.task = TASKS[options.task](options)
        configs = [config_of(x, options.first_seed, options) for x in options.variants.values()]
        first = configs[0]
        if len(guidance := {config.method.w for config in configs}) > 1:
            raise InputError(f"--variant: expected one w for all, got {guidance}")
        if any((x.teacher, x.data) != (first.teacher, first.data) for x in configs):
            raise InputError("--variant: expected one teacher and its data for all; see --change")
        measure = Measure(options.task, first, options.runs, options.dtype)
        rows = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for name in options.variants:
                rows += rows_of(name, seed, options, measure)
                gc.collect()  # of the run's programs
        teacher = measure.teacher(workdir_of(next(iter(options.variants)), options), first)
        report = {**made, "protocol": measure.protocol, "teacher": teacher, "rows": rows}
        workdirs = {name: workdir_of(name, options) for name in options.variants}
        measure.show(workdirs, options.out / f"{options.name}_pictures.png")
    except (InputError, BackendError) as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        sys.exit(f"{stop}; the same command goes on")
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / f"{options.name}.json", report)
    methods_tables.write(report, options.out / options.name)


if __name__ == "__main__":
    main()
