"""slam-jax evaluate: measure a student, or a teacher, on many pictures.

slam-jax evaluate --model runs/sd --preset coco2014_30k --data coco --out runs/sd_coco
slam-jax evaluate --model runs/digits --count 2000 --steps 1,4 --out runs/digits_measured

Killed, the same command goes on where it was; with more --steps it draws only these.
"""

import argparse
import dataclasses
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from slam_jax.base.errors import BackendError, InputError
from slam_jax.base.files import locked
from slam_jax.commands.command import add_version_options, check_counts, check_seed, parser_of
from slam_jax.config.options import DTYPES
from slam_jax.drawing.draw import Settings, choose_guidance, make_sampler
from slam_jax.drawing.metrics.metric import Metric
from slam_jax.drawing.metrics.registry import METRICS, choose, networks_of
from slam_jax.evaluation.evaluate import Task, check_pictures, compared_networks, evaluate
from slam_jax.evaluation.images import Images
from slam_jax.evaluation.presets import PRESETS, find, preset_of
from slam_jax.evaluation.prompts import PromptList, read_prompts
from slam_jax.evaluation.reference import open_reference
from slam_jax.evaluation.results import to_markdown, write_results
from slam_jax.families.family import LoadOptions, Model
from slam_jax.features.choose import open_networks
from slam_jax.features.registry import NETWORKS
from slam_jax.models.functional import fingerprint
from slam_jax.parallel import runtime
from slam_jax.parallel.processes import is_main, join, together
from slam_jax.recipes.student import load


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers above 0, between commas; of argparse."""
    found = tuple(int(part) for part in text.split(","))
    if min(found) < 1:
        raise ValueError
    return found


def read_metrics(text: str) -> list[Metric]:
    """The metrics of an option; none: those that read no network.

    Raises:
      InputError: there is no such metric.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            raise InputError(f"--metrics {name}: expected of {', '.join(METRICS)}")
    return choose(names)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Flags that say where the networks' weights are."""
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NETWORK=PATH",
        help=f"file, folder or hub repository of one of {', '.join(NETWORKS)}; may be repeated",
    )


def teacher_path(arguments: argparse.Namespace, model: Model) -> str | None:
    """Where the teacher is: as the user says, as trained in the model's workdir, or as its record
    says; None: not known."""
    trained_here = Path(arguments.model) / "teacher"
    known = (
        str(trained_here) if trained_here.is_dir() else model.info.get("teacher", {}).get("path")
    )
    return arguments.teacher or known


def metrics_for(arguments: argparse.Namespace, model: Model) -> list[Metric]:
    """The metrics that are asked for; none: those of small pictures, as far as there is what they
    compare with.

    Raises:
      InputError: there is no such metric; or none is asked for, and the pictures are large.
    """
    metrics = read_metrics(arguments.metrics)
    if arguments.metrics:
        return metrics
    if model.pipeline.image_size is not None:
        networked = ", ".join(name for name, metric in METRICS.items() if metric.networks)
        raise InputError(f"--metrics or --preset: expected one; metrics are {networked}")
    teacher = teacher_path(arguments, model)
    return [metric for metric in metrics if metric.compares_with != "teacher" or teacher]


def read_teacher(arguments: argparse.Namespace, model: Model) -> tuple[Model, float]:
    """The teacher, where one is named or known, and the usual scale of its guidance.

    Raises:
      InputError: it cannot be read, or is a student.
    """
    if (path := teacher_path(arguments, model)) is None:
        raise InputError("--teacher: a metric compares with it; say where it is")
    teacher = load(path, LoadOptions(dtype=arguments.dtype))
    if teacher.method is not None:
        raise InputError(f"--teacher {path}: is a student")
    guidance = arguments.teacher_guidance
    if guidance is None and model.method is not None:
        guidance = model.method.w + 1
    return teacher, choose_guidance(teacher, guidance)


def read_texts(arguments: argparse.Namespace, model: Model) -> PromptList:
    """The prompts; for a model of labels all of these, in turns.

    Raises:
      InputError: there are none, or they cannot be read.
    """
    count = arguments.count and -(-arguments.count // arguments.per_prompt)
    if arguments.prompts is not None:
        return read_prompts(arguments.prompts, count, arguments.prompts_seed)
    labels = model.pipeline.labels
    if not labels:
        raise InputError("--prompts or --preset: expected one of them")
    texts = tuple(labels[i % len(labels)] for i in range(count or len(labels)))
    return PromptList(texts, {"labels": list(labels), "count": len(texts)})


def work(arguments: argparse.Namespace) -> None:
    """Draws, measures, and says where the numbers are."""
    check_counts(arguments, "batch", "per_prompt", "teacher_steps")
    check_seed(arguments.seed)
    if arguments.preset is not None:
        arguments = with_preset(arguments)
    runtime.probe()
    task = task_of(arguments)
    with locked(arguments.out) if is_main() else nullcontext():
        rows, protocol = evaluate(task, arguments.out, arguments.save_pictures)
        if is_main():
            write_results(arguments.out, rows, protocol, arguments.preset or "")
            print(to_markdown(rows, arguments.preset or ""))
            print(f"\nwrote {arguments.out / 'results.json'} and results.md")


def task_of(arguments: argparse.Namespace) -> Task:
    """Everything that the command line names, opened and checked.

    Raises:
      InputError: something cannot be read, or does not fit the model.
    """
    options = ("revision", "variant", "height", "width", "dtype")
    model = load(arguments.model, LoadOptions(*(getattr(arguments, name) for name in options)))
    asked = arguments.guidance
    if asked is None and not model.is_student:
        asked = arguments.guidance_of_preset
    guidance = choose_guidance(model, asked)
    metrics = metrics_for(arguments, model)
    settings = Settings(guidance=guidance, dtype=arguments.dtype)
    for steps in arguments.steps:
        make_sampler(model, Settings(steps, guidance))
    record: dict[str, Any] = {"model": identity(model)}
    paths = {"model": arguments.model}
    teacher, teacher_guidance = None, 1.0
    if any(metric.compares_with == "teacher" for metric in metrics):
        teacher, teacher_guidance = read_teacher(arguments, model)
        make_sampler(teacher, Settings(arguments.teacher_steps, teacher_guidance))
        drawn = {"steps": arguments.teacher_steps, "guidance": teacher_guidance}
        record["teacher"] = {**identity(teacher), **drawn}
        paths["teacher"] = str(teacher_path(arguments, model))
    networks = open_networks(networks_of(metrics), arguments.weights, "--weights")
    real, names = None, compared_networks(metrics, "reference")
    if names and not arguments.reference:
        raise InputError("--reference: a metric compares with real pictures; say where they are")
    if names:
        identities = {name: networks[name].identity for name in names}
        real = open_reference(arguments.reference, identities, arguments.size)
        known = {"path": real.name, "count": len(real)} if isinstance(real, Images) else real.record
        record["reference"] = known
    task = Task(
        model=model,
        steps=arguments.steps,
        teacher=teacher,
        teacher_steps=arguments.teacher_steps,
        settings=settings,
        teacher_guidance=teacher_guidance,
        prompts=read_texts(arguments, model),
        per_prompt=arguments.per_prompt,
        seed=arguments.seed,
        batch=arguments.batch,
        size=arguments.size,
        metrics=tuple(metric.name for metric in metrics),
        networks=networks,
        reference=real,
        record=record,
        paths=paths,
    )
    check_pictures(task)
    return task


def identity(model: Model) -> dict[str, Any]:
    """Which model it is, wherever it lies: its weights, and what else decides on its pictures."""
    weights = {"denoiser": model.params, **model.frozen}
    return {
        "sha256": {name: fingerprint(params) for name, params in weights.items()},
        "method": None if model.method is None else dataclasses.asdict(model.method),
        "scheduler": model.pipeline.scheduler,
        "latent_shape": list(model.pipeline.latent_shape),
    }


def with_preset(arguments: argparse.Namespace) -> argparse.Namespace:
    """The command line with what a preset fixes; metrics and steps may be others.

    Raises:
      InputError: there is no such preset, something is given that it fixes, or its files are not
        there.
    """
    preset = preset_of(arguments.preset)
    for name in ("prompts", "count", "size"):
        if getattr(arguments, name):
            raise InputError(f"--{name}: {preset.name} fixes it; leave it out, or the preset")
    statistics = arguments.reference or ""
    if statistics and not statistics.endswith(".npz"):
        raise InputError(f"--reference: {preset.name} fixes it; give a file of slam-jax reference")
    found = find(preset, arguments.data, statistics)
    return argparse.Namespace(
        **{
            **vars(arguments),
            "prompts": found.prompts,
            "count": preset.count,
            "reference": found.reference,
            "size": preset.picture_size,
            "metrics": arguments.metrics or ",".join(preset.metrics),
            "guidance_of_preset": preset.guidance,
        }
    )


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("evaluate", "Measure a student, or a teacher, on many pictures.")
    add = parser.add_argument
    add("--model", required=True, help="workdir of a finished run, folder, or hub repository")
    add_version_options(parser)
    add("--width", type=int, help="in pixels; None: what it was trained on")
    add("--height", type=int, help="in pixels; None: what it was trained on")
    add("--dtype", choices=DTYPES, default="float32", help="of the networks that draw")
    add("--steps", type=numbers, default=(1, 2, 4, 8), help="numbers of steps, between commas")
    add("--guidance", type=float, help="usual scale, of a teacher that is measured")
    add("--preset", help=f"a whole protocol: {', '.join(PRESETS)}")
    add("--data", type=Path, default=Path(), help="folder with the files of a preset")
    add("--prompts", help="text file, captions JSON of COCO, or images with captions")
    add("--prompts-seed", type=int, default=0, help="of the choice of --count prompts")
    add("--count", type=int, help="pictures; None: one of each prompt")
    add("--per-prompt", type=int, default=1, help="pictures of each prompt")
    add("--seed", type=int, default=0, help="of the noise")
    add("--reference", help="folder, zip or tars of real pictures, or a file of slam-jax reference")
    add("--size", type=int, default=0, help="centre square of this size, by Lanczos; 0: as drawn")
    add("--metrics", default="", help=f"between commas, of {', '.join(METRICS)}; empty: of pixels")
    add_network_options(parser)
    add("--teacher", help="folder or hub repository; None: where the run had it")
    add("--teacher-steps", type=int, default=50, help="that the teacher draws in")
    add("--teacher-guidance", type=float, help="usual scale; None: what the student learnt")
    add("--batch", type=int, default=4, help="pictures that a device draws at a time")
    add("--save-pictures", action="store_true", help="keep them in tars, with their prompts")
    add("--out", type=Path, required=True, help="folder of this measurement")
    add("--distributed", action="store_true", help="one of several processes, which share --out")
    parser.set_defaults(guidance_of_preset=None)
    arguments = parser.parse_args(argv)
    try:
        runtime.configure(alone=not arguments.distributed)
        if arguments.distributed:
            join()
        elif os.environ.get("JAX_NUM_PROCESSES", "1") != "1":
            raise InputError("JAX_NUM_PROCESSES is set, and --distributed is not given")
        with together():
            runtime.devices()
            work(arguments)
    except (InputError, BackendError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
