"""What each switch gains: the default against another value, everything else equal.

    PYTHONPATH=. python benchmarks/switches.py --shapes tiny
    PYTHONPATH=. python benchmarks/switches.py --shapes sd15 --only execution.attention

in milliseconds of a training step, and of a picture in 4 steps where a switch changes the sampler.
Both get the same weights, inputs and random numbers, take turns, and must compute the same, but for
the number of gammas, with which the loss is another mean; in half precision that is checked in
float32 too. bfloat16 is emulated on a CPU.

Results go to switches_<shapes>_<device>.json in benchmarks/results/ (or --out) after each switch,
in the place of the same switch and value there, and to switches.md and fast.md.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import ours
import parts
import result
import starts
import table
import timing
from ours import Setup
from race import (
    ParityError,
    Subject,
    agree_in_float32,
    loss_difference,
    own_picture_difference,
    precision,
    race,
)
from shapes import SHAPES, Model, make_batch, make_model
from switch_values import Switch, switches

from slam_jax.families.pipeline import DENOISER
from slam_jax.parallel import runtime

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
SAMPLER_STEPS, PARITY_STEPS, PARITY_ROWS, MOST_ROWS = 4, 3, 2, 8
ONE_AT_A_TIME = ("sdxl",)  # two states do not fit on a GPU
DIFFERENCES = {"train_step": loss_difference, "sampler": own_picture_difference}
Batch = dict[str, np.ndarray]


def batches_of(model: Model, count: int) -> dict[str, Batch]:
    """The same examples as pictures, as their moments, and with their embeddings too."""
    batch = make_batch(model, count)
    pipeline, frozen = model.pipeline, {k: v for k, v in model.frozen.items() if k != DENOISER}
    moments = np.asarray(jax.jit(pipeline.moments)(frozen, batch["images"]))
    context, _ = jax.jit(pipeline.contexts, static_argnums=2)(frozen, batch, 0)
    pictures = ours.batch_for(batch, with_pictures=True)
    prepared = ours.batch_for({**batch, "moments": moments}, with_pictures=False)
    stored = {"encoder_hidden_states": np.asarray(context["encoder_hidden_states"])}
    if "added_cond" in context:
        stored["text_embeds"] = np.asarray(context["added_cond"]["text_embeds"])
    return {"images": pictures, "moments": prepared, "embeddings": {**prepared, **stored}}


def measure(
    switch: Switch, what: str, build: Callable, exact: Callable | None, options: Any
) -> dict[str, Any]:
    """A row of the table; one that says why where the two values do not compute the same.

    Args:
      switch: what is changed.
      what: "train_step" or "sampler".
      build: (setup change, batch's name) -> what `Subject.build` returns.
      exact: the same in float32 with few rows; None: `build` is float32.
      options: shapes, repeats and warm_seconds.
    """
    row = {"switch": switch.name, "value": switch.value, "default": switch.default}
    row |= {"note": switch.note}
    if switch.platform not in ("", jax.default_backend()):
        return {**row, "left_out": f"needs a {switch.platform}"}
    name = f"{switch.name} = {switch.value}"
    half = "bfloat16" in (switch.value, switch.default, options.dtype)
    dtype = "bfloat16" if half else precision("float32")
    subjects = {
        "default": Subject(partial(build, lambda setup: setup, "moments"), "default", dtype),
        name: Subject(
            partial(build, switch.setup, switch.batch), "default" if switch.same else name, dtype
        ),
    }
    difference, turns = DIFFERENCES[what], in_turns(options.shapes)
    try:
        if exact is not None and switch.same and not switch.name.startswith("precision"):
            both = {
                "default": lambda: exact(lambda setup: setup, "moments")[0],
                name: lambda: exact(switch.setup, switch.batch)[0],
            }
            row |= agree_in_float32(both, dict.fromkeys(both, "default"), difference)[name]
        times = race(subjects, difference, options.repeats, options.warm_seconds, turns)
    except ParityError as error:
        print(f"error: {what}: {error}", file=sys.stderr)
        return {**row, "failed": str(error)}
    default, other = times["default"], times[name]
    if "failed" in other:
        return {**row, "failed": other["failed"]}
    if switch.same:
        row["difference"] = other["difference"]
    return {
        **row,
        "default_ms": 1e3 * default["median_s"],
        "ms": 1e3 * other["median_s"],
        "gain": other["median_s"] / default["median_s"],
        "times": {"default": default, "other": other},
    }


def in_turns(shapes: str) -> bool:
    """Whether the default and another value are held at once."""
    return jax.default_backend() == "cpu" or shapes not in ONE_AT_A_TIME


def builders(model: Model, count: int, setup: Setup) -> dict[str, Callable]:
    """For a training step and for the sampler: (setup change, batch's name) -> what
    `Subject.build` returns. The default is made once, where it can be held."""
    batches, made, keep = batches_of(model, count), {}, in_turns(model.name)

    def train(change, batch):
        key = "train_step", change(setup), batch
        if key not in made:
            advance = ours.train_step(model, batches[batch], key[1])
            losses = np.array([float(advance()) for _ in range(PARITY_STEPS)])
            made[key] = losses, advance
            if key[1] != setup or batch != "moments" or not keep:
                return made.pop(key)
        return made[key]

    def sample(change, batch):
        key = "sampler", change(setup)
        if key not in made:
            call = partial(ours.sampler(model, key[1]), 1, SAMPLER_STEPS)
            made[key] = (np.asarray(call(), np.float32) + 1) / 2, call
            if key[1] != setup or not keep:
                return made.pop(key)
        return made[key]

    return {"train_step": train, "sampler": sample}


def compile_cache(run: Any) -> dict[str, Any]:
    """A start that compiles against one that finds what an earlier start kept."""
    found = starts.first_steps(run)
    seconds = {name: found[name]["whole_process_s"]["median_s"] for name in table.STARTS}
    return {
        "switch": "compile cache",
        "value": "off, or the first start",
        "default": "on, from the second start",
        "default_ms": 1e3 * seconds["with_cache"],
        "ms": 1e3 * seconds["cold"],
        "gain": seconds["cold"] / seconds["with_cache"],
        "times": found,
    }


@dataclass(frozen=True)
class Options:
    """What `measure`, `starts.first_steps` and `parts.warm` read."""

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
    parser.add_argument("--repeats", type=result.positive, default=10)
    parser.add_argument("--quick", action="store_true", help="two calls of each, to try it")
    parser.add_argument("--out", type=Path, default=result.FOLDER, help="folder")
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
    header = {"shapes": options.shapes, "device": result.device()}
    for what, row in rows_of(wanted, setup, options):
        save(path, header, what, {**row, "made_by": made_by})
    if arguments.only is None or "compile cache" in arguments.only:
        save(path, header, "start", {**compile_cache(options), "made_by": made_by})
    table.write(arguments.out)
    print((arguments.out / "switches.md").read_text())


def rows_of(
    wanted: list[Switch], setup: Setup, options: Options
) -> Iterator[tuple[str, dict[str, Any]]]:
    """("train_step" or "sampler", a row) of each switch, as they are measured."""
    if not wanted:
        return
    model, exact, done = make_model(options.shapes), {}, []
    if options.dtype != "float32" or precision("float32") != "float32":
        plain = replace(setup, dtype="float32", vae_dtype="float32")
        exact = builders(model, PARITY_ROWS, plain)
    build = builders(model, options.batch, setup)
    for switch in wanted:
        for what in switch.on:
            now = replace(options, warm_seconds=parts.warm(options, done))
            row = measure(switch, what, build[what], exact.get(what), now)
            if "ms" in row:
                done.append(row)
            yield what, row


def save(path: Path, header: dict[str, Any], what: str, row: dict[str, Any]) -> None:
    """Writes a row in the place of that of the same switch and value; the others stay."""
    report = json.loads(path.read_text()) if path.exists() else {"switches": {}}
    report |= header
    rows = report["switches"].setdefault(what, [])
    keys = [(old["switch"], old["value"]) for old in rows]
    key = row["switch"], row["value"]
    place = keys.index(key) if key in keys else len(rows)
    row["made_by"] = {**row["made_by"], "load_average_after": os.getloadavg()[0]}
    rows[place : place + 1] = [row]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
