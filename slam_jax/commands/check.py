"""slam-jax check: look through a published few-step student, or a LoRA.

slam-jax check FOLDER [--revision REV] [--variant fp16] [--out sheet.png]
slam-jax check LORA [--allow-unused]
slam-jax check BASE --lora LORA[:WEIGHT] [--lora ...] [--allow-unused] [--out sheet.png]

For diffusers folders and hub repositories of few-step students (LCM and SLAM, such as
alimama-creative/slam-sd1.5 and SimianLuo/LCM_Dreamshaper_v7), for a lone UNet: config.json with
diffusion_pytorch_model.safetensors, and for a LoRA: a safetensors file, or a folder or a hub
repository with one. With --lora a model, teacher or student, is looked through with LoRAs in it.
Prints a line for each check, and exits with 1 when one FAILs.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from slam_jax.base.errors import InputError
from slam_jax.commands.command import (
    add_lora_options,
    add_version_options,
    check_png,
    parser_of,
    path,
    run,
)
from slam_jax.families.family import LoadOptions
from slam_jax.families.registry import reader_of
from slam_jax.families.stable_diffusion_lora import locate
from slam_jax.formats import hub
from slam_jax.formats.diffusers_folder import HUB_ID, resolve
from slam_jax.formats.lora_hub import SUFFIX
from slam_jax.parallel import runtime
from slam_jax.serving.lora_on_base import check_loras
from slam_jax.serving.published import check
from slam_jax.serving.published_denoiser import FAIL, Result
from slam_jax.serving.published_lora import check_lora, published_bases


def exported(name: str) -> Path:
    """A path; of a run that of its export."""
    path = Path(name).expanduser()
    return path / "export" if (path / "export").is_dir() else path


def is_lora(name: str, revision: str) -> bool:
    """Whether a LoRA is meant: a safetensors file, or a folder or a repository of the hub that has
    one and is no model.

    Raises:
      InputError: the hub does not say what a repository has.
    """
    path = exported(name)
    if path.suffix == SUFFIX:
        return True
    if path.is_dir():
        files = {file.name for file in path.iterdir()}
    else:
        files = set(hub.file_names(name, revision)) if HUB_ID.fullmatch(name) else set()
    is_model = files & {"model_index.json", "config.json"}
    return not is_model and any(file.endswith(SUFFIX) for file in files)


def results_of(arguments: argparse.Namespace) -> Iterator[Result]:
    """The checks that the command line asks for.

    Raises:
      InputError: there is no such file or folder, or an option does not fit it.
    """
    name, loras, unused = arguments.folder, arguments.lora, arguments.allow_unused
    if arguments.method and not loras:
        raise InputError(f"--method {arguments.method}: is of LoRAs; give a model and a --lora")
    if not is_lora(name, arguments.revision):
        there = exported(name)
        where = str(there) if there.exists() else name
        folder = resolve(where, arguments.revision, arguments.variant)
        family = reader_of(folder.path)
        if family is not None and not family.in_diffusers:
            raise InputError(
                f"{name}: a model of {family.name}, for which diffusers has no pipeline to compare "
                "with; slam-jax evaluate measures it, slam-jax sample draws with it"
            )
        if unused and not loras:
            raise InputError(f"--allow-unused: is of LoRAs; {name} is a model, give a --lora")
        if loras:
            how = LoadOptions(loras=tuple(loras), allow_unused=unused, method=arguments.method)
            yield from check_loras(folder, how, arguments.out)
        else:
            yield from check(folder, arguments.out)
        return
    if loras:
        raise InputError(f"--lora {loras[0]}: expected a model before it; {name} is a LoRA")
    for option in ("variant", "out"):
        if value := getattr(arguments, option):
            raise InputError(f"--{option} {value}: is of a model; {name} is a LoRA")
    if arguments.revision and Path(name).expanduser().exists():
        raise InputError(f"--revision {arguments.revision}: {name} is no repository of the hub")
    path, _ = locate(name, "", arguments.revision)
    yield from check_lora(path, published_bases, unused)


def work(arguments: argparse.Namespace) -> None:
    """Prints the checks.

    Raises:
      InputError: there is no such folder, or no picture can be written to `--out`.
      SystemExit: a check failed.
    """
    check_png(arguments.out)
    runtime.probe()
    failed = 0
    for result in results_of(arguments):
        failed += result.status == FAIL
        print(f"{result.status:8} {result.name:18} {result.facts}", flush=True)
    if failed:
        sys.exit(f"{failed} of the checks failed")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("check", "Check a published few-step student, or a LoRA.")
    parser.add_argument(
        "folder",
        help="diffusers folder, folder of a UNet, LoRA's file or folder, or hub repository",
    )
    add_version_options(parser)
    add_lora_options(parser)
    parser.add_argument("--out", type=path, help="PNG for pictures in 1, 2 and 4 steps")
    run(work, parser, argv)
