"""Exports a student: a folder that the stock pipelines of diffusers run, and that loads here.

slam-jax export --workdir runs/sd --out sd-student [--step 4000|best] [--verify]
slam-jax export --workdir runs/sd_lora --out sd-lora [--merge]
slam-jax export --workdir runs/sd --artifact --out sd-sampler [--steps 4]

    model_index.json   scheduler/ (the method's)   unet/ (the student's EMA weights, float32)
    vae/   text_encoder/   tokenizer/              the teacher's; SDXL has a second pair
    slam.json                                      how the student was made, and how to use it
    flax/                                          config.json and flax_params.safetensors
    README.md                                      a model card

Of a run that trained a LoRA pytorch_lora_weights.safetensors takes the place of the networks; with
--merge it stands beside them. A run that finishes writes its export/ into its workdir, of a LoRA
without --merge. A digits student is the two files of flax/ alone: diffusers has no pipeline for it.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.commands.command import add_lora_options, check_out, parser_of, path, run
from slam_jax.config.options import DTYPES
from slam_jax.families.family import LoadOptions
from slam_jax.formats.lora_file import KEYS
from slam_jax.recipes.student import as_model, from_checkpoint, load, whole, with_lora
from slam_jax.serving import stock_pipeline
from slam_jax.serving.artifact import PLATFORMS, Options, write_artifact
from slam_jax.training.workdir import read_run

# Options that some exports have, and what these are where they are not given.
OF_RUNS = {"step": None, "teacher": ""}
OF_MODELS = {"lora": [], "allow_unused": False, "method": ""}
OF_ARTIFACTS = dict.fromkeys(("steps", "batch_sizes", "platforms", "dtype"))
OF_FOLDERS = {"verify": False, "merge": False, "extract_lora": None, "lora_keys": KEYS[0]}


def work(arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Exports what the command line asks for, and says where it is."""
    check_options(arguments)
    check_out(arguments.out)
    if arguments.artifact:
        out = export_artifact(arguments, environment)
        print(f"sampler: {out}\ntry it: python {out}/draw.py --seed 3 --out picture.npy")
    else:
        print(f"student: {export_student(arguments)}")


def export_student(arguments: argparse.Namespace) -> Path:
    """Exports what the command line asks for, and returns the folder."""
    out = arguments.out or arguments.workdir / "export"
    if arguments.verify:
        stock_pipeline.require("--verify")
    student, family = from_checkpoint(arguments.workdir, arguments.step, arguments.teacher)
    step, steps = student.info["checkpoint"], read_run(arguments.workdir).training.steps
    if step < steps:
        print(f"the student of step {step:,}, of {steps:,} that the run has", file=sys.stderr)
    if arguments.merge:
        student = whole(student, family)
    if arguments.extract_lora is not None:
        if not family.in_diffusers:
            raise InputError(f"--extract-lora: {family.name} has no LoRA files")
        targets = read_run(arguments.workdir).student.targets
        student = with_lora(student, family, arguments.extract_lora, targets)
        print(f"the LoRA has {student.info['lora_keeps']:.1%} of the student's change")
    if arguments.lora_keys != KEYS[0]:
        if student.lora is None or not family.in_diffusers:
            raise InputError("--lora-keys: this export has no LoRA file; leave it out")
        student = dataclasses.replace(student, lora_keys=arguments.lora_keys)
    checks = []
    if arguments.verify:
        if not family.in_diffusers:
            raise InputError(f"--verify: diffusers has no pipeline for {family.name}")
        if not student.params:
            stock_pipeline.require("--verify", "peft")
        model = as_model(student, read_run(arguments.workdir), family)
        checks = [partial(stock_pipeline.verify, model)]
    family.export(student, out, checks)
    return out


def export_artifact(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Path:
    """Writes the artifact that the command line asks for, and returns the folder."""
    options = Options(
        **{
            name: getattr(arguments, name)
            for name in OF_ARTIFACTS
            if getattr(arguments, name) is not None
        }
    )
    if arguments.model:
        how = LoadOptions(
            dtype=options.dtype,
            loras=tuple(arguments.lora),
            allow_unused=arguments.allow_unused,
            method=arguments.method,
        )
        model = load(arguments.model, how)
        name, out = arguments.model, arguments.out
    else:
        student, family = from_checkpoint(arguments.workdir, arguments.step, arguments.teacher)
        model = as_model(student, read_run(arguments.workdir), family, options.dtype)
        name, out = str(arguments.workdir), arguments.out or arguments.workdir / "artifact"
    write_artifact(model, name, out, options, environment)
    return out


def check_options(arguments: argparse.Namespace) -> None:
    """Refuses options that do not belong together.

    Raises:
      InputError: names them.
    """
    if (arguments.workdir is None) == (arguments.model is None):
        raise InputError("--workdir or --model: expected one of them")
    if arguments.model is not None and not (arguments.artifact and arguments.out):
        raise InputError("--model: needs --artifact and --out; a run is exported by --workdir")
    for options, wanted, given in (
        (OF_RUNS, "--workdir", arguments.workdir is not None),
        (OF_MODELS, "--model", arguments.model is not None),
        (OF_ARTIFACTS, "--artifact", arguments.artifact),
        (OF_FOLDERS, "an export without --artifact", not arguments.artifact),
    ):
        for name, unset in options.items():
            if getattr(arguments, name) != unset and not given:
                raise InputError(f"--{name.replace('_', '-')}: is for {wanted}")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = parser_of(
        "export",
        "Export the student (EMA weights) of a run, finished or interrupted: a folder for the "
        "pipelines of diffusers, or with --artifact a sampler that needs jax alone.",
    )
    parser.add_argument("--workdir", type=path, help="of the run")
    parser.add_argument(
        "--out", type=path, help="folder to make; default: export/ or artifact/ in the workdir"
    )
    parser.add_argument(
        "--step",
        type=step_of,
        metavar="N|best",
        help="of the checkpoint; best: by config.training.best_metric; default: the newest",
    )
    parser.add_argument("--teacher", default="", help="where it is now, if it was moved")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="draw with torch and diffusers too, and fail where pictures differ (slow)",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="of a LoRA: the whole student too, its teacher's weights with the LoRA in them",
    )
    parser.add_argument(
        "--extract-lora",
        type=int,
        metavar="RANK",
        help="beside the student the LoRA of this rank that is nearest to it (minutes)",
    )
    parser.add_argument(
        "--lora-keys",
        choices=KEYS,
        default=KEYS[0],
        help="names of a LoRA's layers, as kohya's sd-scripts or as diffusers and peft have them",
    )
    add_artifact_options(parser.add_argument_group("a sampler that needs jax alone"))
    environment = dict(os.environ)  # before our own flags
    run(partial(work, environment=environment), parser, argv)


def step_of(text: str) -> int | str:
    """A number, or "best"."""
    if text == "best" or text.isdecimal():
        return text if text == "best" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number or best")


def add_artifact_options(group: Any) -> None:
    """Adds the options that only an artifact has."""
    group.add_argument("--artifact", action="store_true", help="export this")
    group.add_argument("--model", help="folder or hub repository to export so, in place of a run")
    add_lora_options(group)
    group.add_argument("--steps", type=int, help="network evaluations per picture (4)")
    group.add_argument(
        "--batch-sizes", type=numbers, metavar="1,4", help="pictures at a time; one program each"
    )
    group.add_argument(
        "--platforms",
        type=lambda text: tuple(dict.fromkeys(text.split(","))),
        metavar="cpu,cuda,tpu",
        help=f"some of {', '.join(PLATFORMS)}",
    )
    group.add_argument("--dtype", choices=DTYPES, help="of the networks (float32)")


def numbers(text: str) -> tuple[int, ...]:
    """Those of "1,4"."""
    try:
        return tuple(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers, as in 1,4") from None
