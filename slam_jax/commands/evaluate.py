"""slam-jax evaluate: measure a student, or a teacher, on many pictures.

slam-jax evaluate --model runs/sd --preset coco2014_30k --data coco --out runs/sd_coco
slam-jax evaluate --model runs/digits --count 2000 --steps 1,4 --out runs/digits_measured

Killed, the same command goes on where it was; with more --steps it draws only these.
"""

import argparse
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


def read_teacher(arguments: argparse.Namespace, model: Model) -> tuple[Model | None, float]:
    """The teacher, where one is named or known, and the usual scale of its guidance.

    Raises:
      InputError: it cannot be read, or is a student.
    """
    path = arguments.teacher
    if path is None:
        trained_here = Path(arguments.model) / "teacher"
        known = model.info.get("teacher", {}).get("path")
        path = str(trained_here) if trained_here.is_dir() else known
    if path is None:
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
    metrics = read_metrics(arguments.metrics)
    options = ("revision", "variant", "height", "width", "dtype")
    model = load(arguments.model, LoadOptions(*(getattr(arguments, name) for name in options)))
    guidance = choose_guidance(model, arguments.guidance)
    settings = Settings(guidance=guidance, dtype=arguments.dtype)
    for steps in arguments.steps:
        make_sampler(model, Settings(steps, guidance))
    record: dict[str, Any] = {"model": identity(arguments.model, model)}
    teacher, teacher_guidance = None, 1.0
    if any(metric.compares_with == "teacher" for metric in metrics):
        teacher, teacher_guidance = read_teacher(arguments, model)
        make_sampler(teacher, Settings(arguments.teacher_steps, teacher_guidance))
        record["teacher"] = identity(arguments.teacher or "of the model", teacher)
        record["teacher"] |= {"steps": arguments.teacher_steps, "guidance": teacher_guidance}
    networks = open_networks(networks_of(metrics), arguments.weights, "--weights")
    real, names = None, compared_networks(metrics, "reference")
    if names and not arguments.reference:
        raise InputError("--reference: a metric compares with real pictures; say where they are")
    if names:
        identities = {name: networks[name].identity for name in names}
        real = open_reference(arguments.reference, identities, arguments.size)
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
        record={**record, "reference": arguments.reference},
    )
    check_pictures(task)
    return task


def identity(path: str, model: Model) -> dict[str, Any]:
    """Which model it is: where it was, and the SHA-256 of the denoiser's weights."""
    return {"path": path, "sha256": fingerprint(model.params)}


def with_preset(arguments: argparse.Namespace) -> argparse.Namespace:
    """The command line with what a preset fixes; metrics and steps may be others.

    Raises:
      InputError: there is no such preset, something is given that it fixes, or its files are not
        there.
    """
    preset = preset_of(arguments.preset)
    for name in ("prompts", "count", "reference", "size"):
        if getattr(arguments, name):
            raise InputError(f"--{name}: {preset.name} fixes it; leave it out, or the preset")
    found = find(preset, arguments.data)
    return argparse.Namespace(
        **{
            **vars(arguments),
            "prompts": found.prompts,
            "count": preset.count,
            "reference": found.reference,
            "size": preset.picture_size,
            "metrics": arguments.metrics or ",".join(preset.metrics),
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
