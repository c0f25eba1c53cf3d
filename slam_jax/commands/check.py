"""slam-jax check: look through a published few-step student.

slam-jax check FOLDER [--revision REV] [--variant fp16] [--out sheet.png]

For diffusers folders and hub repositories of few-step students (LCM and SLAM, such as
alimama-creative/slam-sd1.5 and SimianLuo/LCM_Dreamshaper_v7), and for a lone UNet: config.json with
diffusion_pytorch_model.safetensors. Prints a line for each check, and exits with 1 when one FAILs.
"""

import argparse
import sys
from pathlib import Path

from slam_jax.commands.command import add_version_options, check_png, parser_of, run
from slam_jax.formats.diffusers_folder import resolve
from slam_jax.parallel import runtime
from slam_jax.serving.published import check
from slam_jax.serving.published_unet import FAIL


def work(arguments: argparse.Namespace) -> None:
    """Prints the checks.

    Raises:
      InputError: there is no such folder, or no picture can be written to `--out`.
      SystemExit: a check failed.
    """
    check_png(arguments.out)
    runtime.probe()
    folder, failed = resolve(arguments.folder, arguments.revision, arguments.variant), 0
    for result in check(folder, arguments.out):
        failed += result.status == FAIL
        print(f"{result.status:8} {result.name:14} {result.facts}", flush=True)
    if failed:
        sys.exit(f"{failed} of the checks failed")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("check", "Check a published few-step student.")
    parser.add_argument("folder", help="diffusers folder, folder of a UNet, or hub repository")
    add_version_options(parser)
    parser.add_argument("--out", type=Path, help="PNG for pictures in 1, 2 and 4 steps")
    run(work, parser, argv)
