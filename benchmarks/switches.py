"""What each switch gains: the default against another value, everything else equal.

    PYTHONPATH=. python benchmarks/switches.py --shapes tiny
    PYTHONPATH=. python benchmarks/switches.py --shapes sd15 --only execution.attention

in milliseconds of a training step, and of a picture in 4 steps where a switch changes the sampler.
Both get the same weights, inputs and random numbers, take turns, and must compute the same, but for
the number of gammas, with which the loss is another mean. bfloat16 is emulated on a CPU.

Results go to switches_<shapes>_<device>.json in benchmarks/results/ (or --out) after each switch,
and to switches.md.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import ours
import parts
import result
import table
import timing
from ours import Setup
from race import Subject, loss_difference, picture_difference, race
from shapes import SHAPES, Model, make_batch, make_model

from slam_jax import runtime
from slam_jax.models import execution, remat
from slam_jax.models.execution import Execution

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
SAMPLER_STEPS, PARITY_STEPS, MOST_ROWS = 4, 3, 8
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Switch:
    """One value that is not the default.

    Attributes:
      name: of the option.
      value: the other one.
      default: what it is compared with.
      setup: how a model is computed with it, from how it is without.
      batch: the training batch with it, from that without.
      on: "train_step", "sampler" or both.
      same: whether losses are the same.
      note: for the table.
      platform: that it needs; empty: any.
    """

    name: str
    value: str
    default: str
    setup: Callable[[Setup], Setup] = lambda setup: setup
    batch: str = "moments"
    on: tuple[str, ...] = ("train_step",)
    same: bool = True
    note: str = ""
    platform: str = ""


def switches(default: Setup) -> list[Switch]:
    """All of them; what is the default depends on the device."""
    found = []
    values = {
        "attention": execution.ATTENTION,
        "norm": execution.NORM,
        "projections": execution.PROJECTIONS,
    }
    for name, names in values.items():
        usual = getattr(Execution(), name)
        for value in names:
            if value != usual:
                setup = partial(_with_execution, **{name: value})
                needs = "gpu" if value == "cudnn" else ""
                both = ("train_step", "sampler")
                found.append(
                    Switch(f"execution.{name}", value, usual, setup, on=both, platform=needs)
                )
    found += [
        Switch("training.teacher_passes", "2", "1", lambda s: replace(s, teacher_passes=2)),
        Switch("latents", "encoded in each step", "prepared", batch="images"),
        Switch("text embeddings", "prepared", "computed in each step", batch="embeddings"),
    ]
    for count in (2, 4):
        found.append(
            Switch(
                "method.gammas_per_subpath",
                str(count),
                "1",
                partial(_with_gammas, count=count),
                same=False,
                note=f"{count} losses of each sub-path",
            )
        )
    found += [
        Switch("training.remat", name, "none", partial(replace, remat=name))
        for name in remat.REMAT
        if name != "none"
    ]
    other = "bfloat16" if default.dtype == "float32" else "float32"
    both = ("train_step", "sampler")
    precision = partial(replace, dtype=other, vae_dtype=other)
    emulated = "emulated" if jax.default_backend() == "cpu" else ""
    found.append(Switch("precision", other, default.dtype, precision, on=both, note=emulated))
    return found


def _with_execution(setup: Setup, **options: str) -> Setup:
    return replace(setup, execution=Execution(**options))


def _with_gammas(setup: Setup, count: int) -> Setup:
    return replace(setup, method=replace(setup.method, gammas_per_subpath=count))


def batches_of(model: Model, count: int) -> dict[str, Batch]:
    """The same examples as pictures, as their moments, and with their embeddings too."""
    batch = make_batch(model, count)
    pipeline, frozen = model.pipeline, {k: v for k, v in model.frozen.items() if k != "unet"}
    moments = np.asarray(jax.jit(pipeline.moments)(frozen, batch["images"]))
    context, _ = jax.jit(pipeline.contexts, static_argnums=2)(frozen, batch, 0)
    pictures = ours.batch_for(batch, with_pictures=True)
    prepared = ours.batch_for({**batch, "moments": moments}, with_pictures=False)
    stored = {"encoder_hidden_states": np.asarray(context["encoder_hidden_states"])}
    if "added_cond" in context:
        stored["text_embeds"] = np.asarray(context["added_cond"]["text_embeds"])
    return {"images": pictures, "moments": prepared, "embeddings": {**prepared, **stored}}


def measure(switch: Switch, what: str, build: Callable, options: Any) -> dict[str, Any]:
    """A row of the table.

    Args:
      switch: what is changed.
      what: "train_step" or "sampler".
      build: (setup change, batch's name) -> what `Subject.build` returns.
      options: repeats and warm_seconds.

    Raises:
      ParityError: the two values do not compute the same.
    """
    row = {"switch": switch.name, "value": switch.value, "default": switch.default}
    row |= {"note": switch.note}
    if switch.platform not in ("", jax.default_backend()):
        return {**row, "left_out": f"needs a {switch.platform}"}
    name = f"{switch.name} = {switch.value}"
    half = "bfloat16" in (switch.value, switch.default, options.dtype)
    dtype = "bfloat16" if half else "float32"
    subjects = {
        "default": Subject(partial(build, lambda setup: setup, "moments"), "default", dtype),
        name: Subject(
            partial(build, switch.setup, switch.batch), "default" if switch.same else name, dtype
        ),
    }
    difference = loss_difference if what == "train_step" else picture_difference
    times = race(subjects, difference, options.repeats, options.warm_seconds, turns=True)
    default, other = times["default"], times[name]
    if switch.same:
        row["difference"] = other["difference"]
    return {
        **row,
        "default_ms": 1e3 * default["median_s"],
        "ms": 1e3 * other["median_s"],
        "gain": other["median_s"] / default["median_s"],
        "times": {"default": default, "other": other},
    }


def builders(model: Model, count: int, setup: Setup) -> dict[str, Callable]:
    """For a training step and for the sampler: (setup change, batch's name) -> what
    `Subject.build` returns. The default is made once."""
    batches, made = batches_of(model, count), {}

    def train(change, batch):
        key = "train_step", change(setup), batch
        if key not in made:
            advance = ours.train_step(model, batches[batch], key[1])
            losses = np.array([float(advance()) for _ in range(PARITY_STEPS)])
            made[key] = losses, advance
            if key[1] != setup or batch != "moments":
                return made.pop(key)
        return made[key]

    def sample(change, batch):
        key = "sampler", change(setup)
        if key not in made:
            call = partial(ours.sampler(model, key[1]), 1, SAMPLER_STEPS)
            made[key] = (np.asarray(call(), np.float32) + 1) / 2, call
            if key[1] != setup:
                return made.pop(key)
        return made[key]

    return {"train_step": train, "sampler": sample}


def compile_cache(run: Any) -> dict[str, Any]:
    """A start that compiles against one that finds what an earlier start kept."""
    starts = parts.compile(run)
    seconds = {name: starts[name]["whole_process_s"] for name in ("cold", "with_cache")}
    return {
        "switch": "compile cache",
        "value": "off, or the first start",
        "default": "on, from the second start",
        "default_ms": 1e3 * seconds["with_cache"],
        "ms": 1e3 * seconds["cold"],
        "gain": seconds["cold"] / seconds["with_cache"],
        "times": starts,
    }


@dataclass(frozen=True)
class Options:
    """What `measure` and `parts.compile` read."""

    shapes: str
    batch: int
    dtype: str
    repeats: int
    warm_seconds: float


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=SHAPES, default="tiny")
    parser.add_argument("--only", type=lambda text: text.split(","), help="switches, with commas")
    parser.add_argument("--batch", type=int, help="rows of a training step")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two calls of each, to try it")
    parser.add_argument("--out", type=Path, default=result.FOLDER)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    runtime.configure()
    runtime.probe()
    on_cpu, quick = jax.default_backend() == "cpu", arguments.quick
    usual = SHAPES[arguments.shapes].train_batch
    options = Options(
        shapes=arguments.shapes,
        batch=arguments.batch or (2 if quick else min(MOST_ROWS, usual)),
        dtype=arguments.dtype or ("float32" if on_cpu else "bfloat16"),
        repeats=2 if quick else arguments.repeats,
        warm_seconds=0 if quick else timing.seconds_to_warm(),
    )
    setup = Setup(dtype=options.dtype, vae_dtype=options.dtype)
    wanted = [s for s in switches(setup) if arguments.only is None or s.name in arguments.only]
    names = [*dict.fromkeys(s.name for s in switches(setup)), "compile cache"]
    if wrong := [name for name in arguments.only or () if name not in names]:
        raise SystemExit(f"error: --only {','.join(wrong)}: expected {', '.join(names)}")
    path = arguments.out / f"switches_{options.shapes}_{result.device_slug()}.json"
    made_by = result.made_by("switches.py", argv, PACKAGES) | dataclasses.asdict(options)
    report = {"shapes": options.shapes, "device": result.device(), "made_by": made_by}
    report["switches"] = {}
    if wanted:
        build = builders(make_model(options.shapes), options.batch, setup)
    for switch in wanted:
        for what in switch.on:
            row = measure(switch, what, build[what], options)
            report["switches"].setdefault(what, []).append(row)
            save(report, path)
    if arguments.only is None or "compile cache" in arguments.only:
        report["switches"]["start"] = [compile_cache(options)]
        save(report, path)
    text = table.switch_tables(sorted(arguments.out.glob("switches_*.json")))
    (arguments.out / "switches.md").write_text(text)
    print(text)


def save(report: dict[str, Any], path: Path) -> None:
    """Writes what there is; a run that is cut off leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report["made_by"]["load_average_after"] = os.getloadavg()[0]
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
