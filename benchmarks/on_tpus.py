r"""What the compiler for TPUs makes of a training step or a sampler at the published sizes, without
a TPU. It takes libtpu (`pip install 'slam_jax[tpu-plan]'`), minutes to hours, and some GB.

    PYTHONPATH=. python benchmarks/on_tpus.py --model tiny --topology v5e:2x4 --fsdp 4
    PYTHONPATH=. python benchmarks/on_tpus.py --model sd15 --sampler --topology v5e:1x1

JAX_OPTIMIZATION_LEVEL=O1 before it makes the compiler work less, and need less memory here.

A step is that of the recipe sd or sdxl on prepared latents, with --rows examples on each device. A
sampler draws --rows pictures in 4 steps, in bfloat16, on one device.
Writes tpu_MODEL_WHAT_TOPOLOGY.json into benchmarks/results/ (or --out): bytes on a device, traffic,
products, the seconds and the memory of this machine that it took; or where it stopped. And tpus.md,
a table of all such files there.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from memory_of_lora import Case, config_of, family_of
from result import FOLDER, made_by, positive, write
from shapes import SHAPES, pipeline_of

from slam_jax.base.errors import BackendError, InputError
from slam_jax.base.json_file import read_json
from slam_jax.config import options
from slam_jax.config.options import Precision
from slam_jax.drawing.draw import Settings, make_sampler
from slam_jax.families.family import Model
from slam_jax.families.pipeline import student_config
from slam_jax.method.slam import Slam
from slam_jax.models.functional import abstract_params, cast
from slam_jax.models.remat import REMAT
from slam_jax.models.unet import UNet2DConditionModel
from slam_jax.parallel import runtime
from slam_jax.parallel.sharding import make_mesh, placed
from slam_jax.parallel.topology import (
    GIB,
    Devices,
    DoesNotFit,
    check_compiler,
    compile_apart,
    parse_topology,
)
from slam_jax.recipes.memory import PREPARED, lower

DTYPE = "bfloat16"


def lower_step(model: str, mesh: options.Mesh, rows: int, remat: str, devices: Devices):
    """The training step.

    Args:
      model: a name in SHAPES.
      mesh: over the devices.
      rows: examples on each device.
      remat: what the gradient computes again.
      devices: of a topology.
    """
    recipe = "sdxl" if model == "sdxl" else "sd"
    case = Case(recipe, recipe, model, rows * len(devices), remat, "full", PREPARED)
    config = replace(config_of(recipe, case, case.kind), mesh=mesh)
    return lower(config, family_of(case), make_mesh(mesh.data, mesh.fsdp, devices))


def lower_sampler(model: str, rows: int, devices: Devices):
    """A student of SLAM that draws in 4 steps on the first device; arguments as `lower_step`."""
    teacher, method = pipeline_of(SHAPES[model]), Slam()
    pipeline = replace(teacher, network=student_config(teacher, method))
    draw = make_sampler(Model(pipeline, {}, {}, method), Settings(steps=4, dtype=DTYPE))
    student = abstract_params(UNet2DConditionModel, pipeline.network)
    student = jax.eval_shape(partial(cast, dtype=DTYPE), student)
    frozen = pipeline.shapes_around(Precision(vae=DTYPE, text_encoder=DTYPE))
    arguments = frozen, student, pipeline.prompts(["a lighthouse"] * rows)
    here = NamedSharding(make_mesh(1, 1, devices[:1]), PartitionSpec())
    return draw.lower(*placed(arguments, jax.tree.map(lambda _: here, arguments)), (0, 0))


def measure(options_: argparse.Namespace) -> dict[str, Any]:
    """What became of it.

    Raises:
      InputError: the topology, or its mesh, is none.
    """
    topology = parse_topology(options_.topology)
    version, start = check_compiler(), time.monotonic()
    if options_.sampler:
        if topology.size > 1 or options_.fsdp > 1 or options_.remat:
            raise InputError("--sampler: is for one device, without --fsdp and --remat")
        what: dict[str, Any] = {"steps": 4, "dtype": DTYPE}
        make = partial(lower_sampler, options_.model, options_.rows)
    else:
        if topology.size % options_.fsdp:
            raise InputError(f"--fsdp {options_.fsdp}: does not divide the {topology.size} devices")
        mesh = options.Mesh(topology.size // options_.fsdp, options_.fsdp)
        remat = options_.remat or "full"
        what = {"data": mesh.data, "fsdp": mesh.fsdp, "remat": remat}
        make = partial(lower_step, options_.model, mesh, options_.rows, remat)
    try:
        program = compile_apart(topology, make)
        found = {"fits": True, **asdict(program), "total": program.total}
    except DoesNotFit as error:
        found = {"fits": False, "stopped": str(error)}
    except BackendError as error:
        found = {"stopped": str(error)}
    return {
        "libtpu": version,
        "topology": str(topology),
        "devices": topology.size,
        "model": options_.model,
        "rows_per_device": options_.rows,
        "optimization_level": jax.config.jax_optimization_level,
        **what,
        **found,
        "seconds": time.monotonic() - start,
        "host_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }


def table(reports: Sequence[dict[str, Any]]) -> str:
    """Of several results, in Markdown."""
    head = (
        *("TPUs", "program", "arguments", "temporary", "code", "gathered", "at a time"),
        *("gradients' sums", "compiling"),
    )
    lines = [head, ["---"] * len(head), *(_row(report) for report in reports)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(report: dict[str, Any]) -> list[str]:
    rows = report["rows_per_device"]
    what = f"{rows} row{'s' * (rows > 1)} a device"
    if "steps" in report:
        program = f"{report['model']}: sampler, {report['steps']} steps, {what}"
    else:
        mesh = f"data={report['data']}, fsdp={report['fsdp']}"
        program = f"{report['model']}: step, {mesh}, {what}, remat {report['remat']}"
    minutes = f"{report['seconds'] / 60:.0f} min, {report['host_bytes'] / GIB:.1f} GiB"
    if report["optimization_level"] != "UNKNOWN":  # XLA's usual one
        program += f", {report['optimization_level']}"
    if "stopped" in report:
        return [report["topology"], f"{program}: {report['stopped']}", *["-"] * 6, minutes]
    sizes = [_size(report[name]) for name in ("arguments", "temporary", "code")]
    gathered, summed = (
        _size(sum(size for kind, *_, size in report["traffic"] if (kind == "all-gather") == whole))
        for whole in (True, False)
    )
    at_once = "?" if report["whole"] is None else _size(report["whole"])
    return [report["topology"], program, *sizes, gathered, at_once, summed, minutes]


def _size(count: int) -> str:
    """Bytes, as a person reads them."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", choices=SHAPES, default="tiny")
    add("--topology", default="v5e:2x4")
    add("--sampler", action="store_true", help="not the training step")
    add("--fsdp", type=positive, default=1, help="of the mesh")
    add("--rows", type=positive, default=1, help="examples or pictures on each device")
    add("--remat", choices=REMAT, help="of a step; None: full")
    add("--out", type=Path, default=FOLDER, help="folder of the result")
    arguments = parser.parse_args(argv)
    runtime.configure()
    made = made_by("on_tpus.py", argv, ("jax", "flax"))
    try:
        report = {**made, **measure(arguments)}
    except InputError as error:
        parser.exit(1, f"error: {error}\n")
    what = "sampler" if arguments.sampler else "step"
    place = arguments.topology.replace(":", "_")
    write(report, arguments.out / f"tpu_{arguments.model}_{what}_{place}.json")
    reports = [read_json(path, "remove it") for path in sorted(arguments.out.glob("tpu_*.json"))]
    (arguments.out / "tpus.md").write_text(table(reports))


if __name__ == "__main__":
    main()
