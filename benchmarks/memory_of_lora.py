r"""What a training step of a LoRA needs on one device, from shapes alone, beside a whole student.

    PYTHONPATH=. python benchmarks/memory_of_lora.py --recipe sd_lora

The recipes sd_lora and sdxl_lora at 512 and 1024 pixels, on prepared latents; sd35 at 1024, a LoRA
(sd35_lora) and a whole student (sd35), on prepared latents and text embeddings. Weights, state and
gradients are counted; what comes and goes in a step is what XLA for CPUs sets aside, compiled as
`slam-jax plan` compiles: an estimate for accelerators. It takes 6 minutes of a core for sd_lora.
With --no-compile it is counted: an estimate.
Writes memory_RECIPE.json into benchmarks/results/ (or --out).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from result import FOLDER, made_by, write
from shapes import SHAPES, pipeline_of
from shapes_of_sd3 import sd35_medium

from slam_jax.config.command_line import read_recipe
from slam_jax.config.options import Config
from slam_jax.config.validate import freeze
from slam_jax.families.published_model import PublishedModel
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.formats.diffusers_folder import Folder
from slam_jax.parallel import runtime
from slam_jax.recipes.memory import PREPARED, PREPARED_TEXTS, flops_per_sample, need_of, parts_of


class Case(NamedTuple):
    """A run on one device.

    Attributes:
      recipe: its recipe.
      whole: the recipe of a whole student with the same method, or nearly so.
      shapes: a name in SHAPES, or "sd35_medium".
      rows: examples in a step.
      remat: what the gradient computes again.
      kind: of the student.
      data: of the run.
    """

    recipe: str
    whole: str
    shapes: str
    rows: int
    remat: str
    kind: str = "lora"
    data: str = PREPARED


CASES = {
    "sd_lora": Case("sd_lora", "sd_slam", "sd15", 8, "minimal"),
    "sdxl_lora": Case("sdxl_lora", "sdxl", "sdxl", 1, "full"),
    "sd35_lora": Case("sd35", "sd35", "sd35_medium", 1, "full", data=PREPARED_TEXTS),
    "sd35": Case("sd35", "sd35", "sd35_medium", 1, "full", "full", PREPARED_TEXTS),
}


def config_of(recipe: str, case: Case, kind: str) -> Config:
    """The recipe for one device."""
    values = read_recipe(recipe)
    values.mesh.data, values.data.source, values.student.kind = 1, case.data, kind
    values.training.update(batch_size=case.rows, remat=case.remat)
    return freeze(values)


def family_of(case: Case) -> PublishedModel:
    """A teacher of the case's shapes, without files."""
    if case.shapes == "sd35_medium":
        return sd35_medium()
    return StableDiffusion(pipeline_of(SHAPES[case.shapes]), Folder(Path(case.shapes), case.shapes))


def measure(case: Case, compiling: bool) -> dict[str, Any]:
    """Bytes and FLOPs of one case; what comes and goes in a step is counted, unless compiling."""
    config, whole = config_of(case.recipe, case, case.kind), config_of(case.whole, case, "full")
    family = family_of(case)
    print(f"{case.recipe}: {'compiling' if compiling else 'counting'}", file=sys.stderr)
    need = need_of(config, family, compiling)
    parts = {name: here for name, (_, here) in need.parts.items()}
    others = {name: here for name, (_, here) in parts_of(whole, family).items()}
    return {
        **case._asdict(),
        "bytes": {**parts, "activations, copies": need.temporary, "sum": need.total},
        "source": need.source,
        "flops_per_sample": flops_per_sample(config, family),
        "bytes_of_whole_student": {**others, "sum without activations": sum(others.values())},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=CASES, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result")
    parser.add_argument("--no-compile", action="store_true", help="count, as slam-jax plan does")
    options = parser.parse_args(argv)
    made = made_by("memory_of_lora.py", argv, ("jax", "flax"))
    runtime.configure()
    report = {**made, **measure(CASES[options.recipe], not options.no_compile)}
    write(report, options.out / f"memory_{options.recipe}.json")


if __name__ == "__main__":
    main()
