"""What `slam-jax evaluate` measures, from its command line: everything is opened and checked, and
nothing is written yet."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.drawing.draw import Settings, choose_guidance, make_sampler
from slam_jax.drawing.metrics.metric import Metric
from slam_jax.drawing.metrics.registry import METRICS, choose, networks_of
from slam_jax.evaluation.evaluate import Task, check_pictures, compared_networks
from slam_jax.evaluation.images import Images
from slam_jax.evaluation.presets import find, preset_of
from slam_jax.evaluation.prompts import PromptList, read_prompts
from slam_jax.evaluation.reference import RealPictures, open_reference
from slam_jax.families.family import LoadOptions, Model
from slam_jax.features.choose import open_networks
from slam_jax.features.network import FeatureNetwork
from slam_jax.models.functional import fingerprint
from slam_jax.recipes.student import load, load_options


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
        raise InputError(
            "--metrics or --preset: expected one, as those of pixels are for small pictures such "
            f"as the digits; metrics are {networked}"
        )
    teacher = teacher_path(arguments, model)
    return [metric for metric in metrics if metric.compares_with != "teacher" or teacher]


def read_teacher(arguments: argparse.Namespace, model: Model) -> tuple[Model, float]:
    """The teacher, where one is named or known, and the usual scale of its guidance.

    Raises:
      InputError: it cannot be read, or is a student.
    """
    if (path := teacher_path(arguments, model)) is None:
        raise InputError("--teacher: a metric compares with it; say where it is")
    if arguments.lora:
        raise InputError(
            "--lora: would change the student and not the teacher that a metric compares with; "
            "choose --metrics that compare with no teacher"
        )
    return load_teacher(path, model, arguments)


def load_teacher(path: str, model: Model, arguments: argparse.Namespace) -> tuple[Model, float]:
    """A teacher for pictures of a model's size, and the usual scale of its guidance.

    Args:
      path: where it is.
      model: which is compared with it.
      arguments: of the command line, with "model", "dtype" and "teacher_guidance", which is by
        default what a student learnt.

    Raises:
      InputError: it cannot be read, is a student, or not of the model's kind.
    """
    size = model.pipeline.image_size or (None, None)
    teacher = load(path, LoadOptions("", "", *size, arguments.dtype))
    if teacher.method is not None:
        raise InputError(f"--teacher {path}: is a student")
    ours, theirs = ((type(m.pipeline), m.pipeline.latent_shape) for m in (model, teacher))
    if ours != theirs:
        raise InputError(
            f"--teacher {path}: draws from noise of another shape or kind than {arguments.model}; "
            "give the teacher that it was distilled from"
        )
    guidance = arguments.teacher_guidance
    if guidance is None and model.method is not None:
        guidance = model.method.w + 1
    return teacher, choose_guidance(teacher, guidance)


def read_texts(arguments: argparse.Namespace, model: Model) -> PromptList:
    """The prompts; for a model of labels all of these, in turns.

    Raises:
      InputError: there are none, or they cannot be read.
    """
    count = arguments.count and arguments.count // arguments.per_prompt
    if arguments.prompts is not None:
        return read_prompts(arguments.prompts, count, arguments.prompts_seed)
    labels = model.pipeline.labels
    if not labels:
        raise InputError("--prompts or --preset: expected one of them")
    texts = tuple(labels[i % len(labels)] for i in range(count or len(labels)))
    return PromptList(texts, {"labels": list(labels), "count": len(texts)})


def read_reference(
    arguments: argparse.Namespace,
    metrics: Sequence[Metric],
    networks: Mapping[str, FeatureNetwork],
) -> Images | RealPictures | None:
    """The real pictures that metrics compare with; None: no metric of a network does.

    Raises:
      InputError: they cannot be read, or are not those of the preset; or an option has no effect.
    """
    names = compared_networks(metrics, "reference")
    for option, read in (("size", networks), ("reference", names)):
        if getattr(arguments, option) and not read and arguments.preset is None:
            raise InputError(f"--{option}: no metric here reads it; leave it out")
    if not names:
        return None
    if not arguments.reference:
        raise InputError("--reference: a metric compares with real pictures; say where they are")
    identities = {name: networks[name].identity for name in names}
    real = open_reference(arguments.reference, identities, arguments.size)
    wanted, count = arguments.pictures_of_preset, known_of(real).get("count")
    if wanted and count not in (None, wanted):
        raise InputError(
            f"--reference {arguments.reference}: of {count} pictures; {arguments.preset} compares "
            f"with {wanted}"
        )
    return real


def task_of(arguments: argparse.Namespace) -> Task:
    """Everything that the command line names, opened and checked.

    Raises:
      InputError: something cannot be read, or does not fit the model.
    """
    model = load(arguments.model, load_options(arguments))
    asked = arguments.guidance
    if asked is None and not model.is_student:
        asked = arguments.guidance_of_preset
    guidance = choose_guidance(model, asked)
    metrics = metrics_for(arguments, model)
    settings = Settings(guidance=guidance, dtype=arguments.dtype)
    for steps in arguments.steps:
        make_sampler(model, Settings(steps, guidance))
    record: dict[str, Any] = {"model": identity(model)}
    if model.loras:
        record["loras"] = list(model.loras)
    paths = {"model": arguments.model}
    teacher, teacher_guidance = None, 1.0
    if any(metric.compares_with == "teacher" for metric in metrics):
        teacher, teacher_guidance = read_teacher(arguments, model)
        make_sampler(teacher, Settings(arguments.teacher_steps, teacher_guidance))
        drawn = {"steps": arguments.teacher_steps, "guidance": teacher_guidance}
        record["teacher"] = {**identity(teacher), **drawn}
        paths["teacher"] = str(teacher_path(arguments, model))
    networks = open_networks(networks_of(metrics), arguments.weights, "--weights")
    if (real := read_reference(arguments, metrics, networks)) is not None:
        record["reference"] = known_of(real)
    prompts = read_texts(arguments, model)
    model.pipeline.prompts(prompts.texts)  # which refuses what is none
    task = Task(
        model=model,
        steps=arguments.steps,
        teacher=teacher,
        teacher_steps=arguments.teacher_steps,
        settings=settings,
        teacher_guidance=teacher_guidance,
        prompts=prompts,
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


def known_of(real: Images | RealPictures) -> dict[str, Any]:
    """What is known of real pictures before they are looked at."""
    if isinstance(real, RealPictures):
        return real.record
    return {"path": real.name, "count": len(real), "identity": real.identity}


def with_preset(arguments: argparse.Namespace) -> argparse.Namespace:
    """The command line with what a preset fixes; metrics and steps may be others.

    Raises:
      InputError: there is no such preset, something is given that it fixes, or its files are not
        there.
    """
    preset = preset_of(arguments.preset)
    given = {name: getattr(arguments, name) for name in ("prompts", "count", "size")}
    given |= {"per-prompt": arguments.per_prompt > 1, "prompts-seed": arguments.prompts_seed}
    for name, value in given.items():
        if value:
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
            "pictures_of_preset": preset.pictures,
        }
    )
