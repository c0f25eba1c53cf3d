"""slam-jax evaluate: measure a student, or a teacher, on many pictures.

slam-jax evaluate --model runs/sd --preset coco2014_30k --data coco --out runs/sd_coco
slam-jax evaluate --model runs/digits --count 2000 --steps 1,4 --out runs/digits_measured

Killed, the same command goes on where it was; with more --steps it draws only these.
"""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

from slam_jax.base.errors import InputError
from slam_jax.base.files import locked, room_for
from slam_jax.commands.command import (
    add_lora_options,
    add_size_options,
    add_version_options,
    check_counts,
    check_out,
    check_seed,
    check_size,
    parser_of,
    path,
    refusals,
)
from slam_jax.drawing.metrics.registry import METRICS
from slam_jax.evaluation.evaluate import evaluate
from slam_jax.evaluation.presets import PRESETS
from slam_jax.evaluation.results import to_markdown, write_results
from slam_jax.features.registry import NETWORKS
from slam_jax.parallel import runtime
from slam_jax.parallel.processes import is_main, join, together
from slam_jax.recipes.measure import task_of, with_preset


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers above 0, between commas; of argparse."""
    found = tuple(int(part) for part in text.split(","))
    if min(found) < 1:
        raise ValueError
    return found


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Flags that say where the networks' weights are."""
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NETWORK=PATH",
        help=f"file, folder or hub repository of one of {', '.join(NETWORKS)}; may be repeated",
    )


def work(arguments: argparse.Namespace) -> None:
    """Draws, measures, and says where the numbers are."""
    check_counts(arguments, "batch", "per_prompt", "teacher_steps")
    check_seed(arguments.seed)
    check_seed(arguments.prompts_seed, "--prompts-seed")
    check_size(arguments.size)
    check_out(arguments.out)
    if arguments.count is not None:
        check_counts(arguments, "count")
        if arguments.count % arguments.per_prompt:
            raise InputError(
                f"--count {arguments.count}: expected a multiple of --per-prompt "
                f"{arguments.per_prompt}"
            )
    if arguments.preset is not None:
        arguments = with_preset(arguments)
    runtime.probe()
    task = task_of(arguments)
    advice = "make room; the same command goes on"
    with locked(arguments.out) if is_main() else nullcontext(), room_for(arguments.out, advice):
        rows, protocol = evaluate(task, arguments.out, arguments.save_pictures)
        if is_main():
            rows = write_results(arguments.out, rows, protocol, arguments.preset or "")
            print(to_markdown(rows, arguments.preset or ""))
            print(f"\nwrote {arguments.out / 'results.json'} and results.md")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("evaluate", "Measure a student, or a teacher, on many pictures.")
    add = parser.add_argument
    add("--model", required=True, help="workdir of a finished run, folder, or hub repository")
    add_version_options(parser)
    add_lora_options(parser)
    add_size_options(parser)
    add("--steps", type=numbers, default=(1, 2, 4, 8), help="numbers of steps, between commas")
    add("--guidance", type=float, help="usual scale, of a teacher that is measured")
    add(
        "--preset",
        help=f"a whole protocol; {'; '.join(f'{p.name}: {p.about}' for p in PRESETS.values())}",
    )
    add("--data", type=path, default=Path(), help="folder with the files of a preset")
    add("--prompts", help="text file, captions JSON of COCO, or images with captions")
    add("--prompts-seed", type=int, default=0, help="of the choice of --count prompts")
    add("--count", type=int, help="pictures; None: one of each prompt")
    add("--per-prompt", type=int, default=1, help="pictures of each prompt")
    add("--seed", type=int, default=0, help="of the noise")
    add("--reference", help="folder, zip or tars of real pictures, or a file of slam-jax reference")
    add("--size", type=int, default=0, help="centre square of this size, by Lanczos; 0: as drawn")
    metrics = f"between commas, of {', '.join(METRICS)}; empty: of pixels, for the digits alone"
    add("--metrics", default="", help=f"{metrics}; others need it or --preset")
    add_network_options(parser)
    add("--teacher", help="folder or hub repository; None: where the run had it")
    add("--teacher-steps", type=int, default=50, help="that the teacher draws in")
    add("--teacher-guidance", type=float, help="usual scale; None: what the student learnt")
    add("--batch", type=int, default=4, help="pictures that a device draws at a time")
    add("--save-pictures", action="store_true", help="keep them in tars, with their prompts")
    add("--out", type=path, required=True, help="folder of this measurement")
    add("--distributed", action="store_true", help="one of several processes, which share --out")
    parser.set_defaults(guidance_of_preset=None, pictures_of_preset=0)
    arguments = parser.parse_args(argv)
    with refusals():
        runtime.configure(alone=not arguments.distributed)
        if arguments.distributed:
            join()
        elif os.environ.get("JAX_NUM_PROCESSES", "1") != "1":
            raise InputError("JAX_NUM_PROCESSES is set, and --distributed is not given")
        with together():
            runtime.devices()
            work(arguments)
