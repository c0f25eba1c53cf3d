"""How long each implementation of attention takes: forward, and with its gradient.

    PYTHONPATH=. python benchmarks/attention.py --shapes tiny
    PYTHONPATH=. python benchmarks/attention.py --shapes sd15

float32 on a CPU, else bfloat16. torch's scaled_dot_product_attention is beside them where
torch is. All that do the same take turns. Results go to attention_<shapes>_<dtype>_<device>.json
and .md in benchmarks/results/ (or --out) after each row.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import result
import timing
from table import markdown

from slam_jax.models.attention import attention, why_not_cudnn
from slam_jax.models.execution import ATTENTION
from slam_jax.parallel import runtime

HEADS = 8
PROMPT = 77  # tokens
# Features of a head -> queries. SD 1.5 at 512 pixels has 40, 80 and 160; larger models have 64.
QUERIES = {
    "tiny": {40: 256, 64: 256, 80: 64, 160: 16},
    "sd15": {40: 4096, 64: 4096, 80: 1024, 160: 256},
}
BATCH = {"tiny": 1, "sd15": 2}
DIRECTIONS = ("forward", "backward")  # the latter: both
TORCH = "torch sdpa"


@dataclass(frozen=True)
class Case:
    """An attention: to the queries' own tokens ("self") or to those of a prompt ("cross")."""

    features: int
    kind: str
    batch: int
    queries: int
    keys: int

    def arrays(self) -> list[np.ndarray]:
        """Queries, keys, values and the outputs' cotangent [B, L, H, D], float32."""
        rng = np.random.default_rng(0)
        tokens = (self.queries, self.keys, self.keys, self.queries)
        shapes = [(self.batch, count, HEADS, self.features) for count in tokens]
        return [rng.standard_normal(shape, np.float32) for shape in shapes]


def cases(shapes: str) -> Iterator[Case]:
    """What is timed.

    Args:
      shapes: a key of QUERIES.
    """
    for features, queries in QUERIES[shapes].items():
        yield Case(features, "self", BATCH[shapes], queries, queries)
        yield Case(features, "cross", BATCH[shapes], queries, PROMPT)


def ours(case: Case, implementation: str, direction: str, dtype: str) -> Callable[[], Any] | str:
    """A compiled attention; or why there is none."""
    arrays = [jnp.asarray(array, dtype) for array in case.arrays()]
    if implementation == "cudnn":
        if jax.default_backend() != "gpu":
            return "no GPU"
        if reason := why_not_cudnn(*arrays[:3]):
            return reason
    if implementation == "splash" and jax.default_backend() != "tpu":
        return "no TPU"
    compute = partial(attention, implementation=implementation)

    def backward(q, k, v, cotangent):
        out, pullback = jax.vjp(compute, q, k, v)
        return out, pullback(cotangent)

    if direction == "backward":
        return partial(jax.jit(backward), *arrays)
    return partial(jax.jit(compute), *arrays[:3])


def torchs(case: Case, direction: str, dtype: str) -> Callable[[], Any] | str:
    """torch's attention, with heads before tokens as it wants them; or why there is none."""
    try:
        import torch
    except ImportError:
        return "no torch"
    gpu = jax.default_backend() == "gpu"
    if gpu and not torch.cuda.is_available():
        return "no torch for this GPU"
    torch.set_num_threads(result.threads())
    *inputs, cotangent = (
        torch.from_numpy(array)
        .to("cuda" if gpu else "cpu", getattr(torch, dtype))
        .transpose(1, 2)
        .contiguous()
        for array in case.arrays()
    )
    compute = torch.nn.functional.scaled_dot_product_attention

    @torch.no_grad()
    def forward():
        return compute(*inputs)

    def backward():
        out = compute(*inputs)
        return torch.autograd.grad(out, inputs, cotangent)

    for array in inputs:
        array.requires_grad_()
    return forward if direction == "forward" else backward


def row(
    case: Case, direction: str, dtype: str, repeats: int, warm_seconds: float
) -> dict[str, Any]:
    """Seconds of everybody, or why somebody has none."""
    subjects = {name: ours(case, name, direction, dtype) for name in ATTENTION}
    subjects[TORCH] = torchs(case, direction, dtype)
    found = {name: why for name, why in subjects.items() if isinstance(why, str)}
    runnable = {name: subject for name, subject in subjects.items() if name not in found}
    for name in list(runnable):  # what only the compiler or the device finds out
        try:
            timing.wait(runnable[name]())
        except Exception as error:
            found[name] = str(error).splitlines()[0]
            del runnable[name]
    found |= timing.take_turns(runnable, repeats=repeats, warm_seconds=warm_seconds)
    return {**asdict(case), "direction": direction, "found": {n: found[n] for n in subjects}}


def table(report: dict[str, Any]) -> str:
    """The rows as Markdown: median milliseconds, and below why there are none."""
    names, rows, reasons = [*ATTENTION, TORCH], [], {}
    for entry in report["rows"]:
        cells = [str(entry["features"]), f"{entry['queries']} x {entry['keys']}"]
        cells.append(entry["direction"])
        for name in names:
            seconds = entry["found"][name]
            if isinstance(seconds, str):
                reasons[f"- {name}: {seconds}\n"] = None
                cells.append("cannot")
            else:
                cells.append(f"{1000 * seconds['median_s']:.3g}")
        rows.append(cells)
    made = f"{report['dtype']}, batch {BATCH[report['shapes']]}, {HEADS} heads; median milliseconds"
    lines = markdown(["head dim", "queries x keys", "", *names], rows)
    return f"{made}.\n\n{lines}\n{''.join(reasons)}".rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Times, and writes attention_SHAPES_DTYPE_DEVICE.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=QUERIES, default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=result.positive, default=10)
    parser.add_argument("--quick", action="store_true", help="one size, two calls, to try it")
    parser.add_argument("--out", type=Path, default=result.FOLDER, help="folder")
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    runtime.configure()
    dtype = arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    report = result.made_by("attention.py", argv, ("jax", "jaxlib"))
    report |= {"device": result.device(), "shapes": arguments.shapes, "dtype": dtype}
    report["rows"], warm_seconds = [], 0.0 if quick else timing.seconds_to_warm()
    name = f"attention_{arguments.shapes}_{dtype}_{result.device_slug()}"
    repeats = 2 if quick else arguments.repeats
    arguments.out.mkdir(parents=True, exist_ok=True)
    for case in list(cases(arguments.shapes))[: 1 if quick else None]:
        for direction in DIRECTIONS:
            report["rows"].append(row(case, direction, dtype, repeats, warm_seconds))
            warm_seconds = 0.0  # and it stays so
            # A run that is cut off leaves what there is.
            (arguments.out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
            (arguments.out / f"{name}.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
