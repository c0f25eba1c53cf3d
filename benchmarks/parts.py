"""What speed.py measures, one function for each part; it returns what goes into the result."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import data
import jax
import numpy as np
import ours
import result
import timing
from race import Subject, loss_difference, picture_difference, race
from shapes import make_batch, make_model

from slam_jax.loss import Method

PARTS = ("train_step", "sampler", "vae", "compile", "loader")
PARITY_STEPS = 3
# Precision of the authors' step: float16 on a GPU, as in their README.
AUTHORS_DTYPE = {"bfloat16": "float16", "float32": "float32"}


def train_step(run: Any) -> dict[str, Any]:
    model = make_model(run.shapes)
    batch = make_batch(model, run.batch)
    cached, pictures = (ours.batch_for(batch, with_pictures) for with_pictures in (False, True))
    setup = ours.Setup(dtype=run.dtype)

    def build(rows):
        advance = ours.train_step(model, rows, setup)
        losses = np.array([float(advance()) for _ in range(PARITY_STEPS)])
        return losses, partial(repeated, advance, run.calls)

    # On a GPU ours comes last, as jax gives no memory back.
    subjects = {"ours": Subject(partial(build, cached), "ours", run.dtype)}
    if "authors" in run.peers:
        subjects["ours_from_pictures"] = Subject(partial(build, pictures), "ours_from_pictures")
    peers = _training_peers(run, model, cached, pictures)
    subjects = {**subjects, **peers} if run.turns else {**peers, **subjects}
    times = race(subjects, loss_difference, run.repeats, run.warm_seconds, run.turns)
    flops, peak = ours.flops_per_sample(model, cached), result.device()["peak_tflops"]
    for row in times.values():
        row["samples_per_second"] = run.batch * run.calls / row["median_s"]
        row["tflops"] = row["samples_per_second"] * flops / 1e12
        if peak and run.dtype == "bfloat16":
            row["mfu"] = row["tflops"] / peak
    return {
        "batch": run.batch,
        "steps_in_a_call": run.calls,
        "flops_per_sample": flops,
        "subjects": times,
    }


def repeated(advance: Callable[[], Any], calls: int) -> Any:
    """The last of so many calls' results."""
    for _ in range(calls):
        last = advance()
    return last


def _training_peers(run: Any, model: Any, cached: dict, pictures: dict) -> dict[str, Subject]:
    """The peers' training steps; torch is imported for them only."""
    names = [name for name in run.peers if name in ("authors", "tuned", "tuned_compiled")]
    if not names:
        return {}
    import peer_steps
    import peers

    method, device = Method(), peers.prepare(result.threads())

    def build(name):
        dtype = AUTHORS_DTYPE[run.dtype] if name == "authors" else run.dtype
        nets = peers.networks(model, device, dtype, channels_last=name != "authors")
        if name == "authors":
            advance = peer_steps.authors_step(model, nets, pictures, method)
        else:
            mode = run.compile_mode if name == "tuned_compiled" else None
            advance = peer_steps.tuned_step(model, nets, cached, method, mode)
        drawn = (ours.step_draws(model, run.batch, i, method) for i in range(PARITY_STEPS))
        losses = [float(advance(peer_steps.given_draws(d, device))) for d in drawn]
        return np.array(losses), partial(repeated, advance, run.calls)

    subjects = {}
    for name in names:
        like = "ours_from_pictures" if name == "authors" else "ours"
        dtype = AUTHORS_DTYPE[run.dtype] if name == "authors" else run.dtype
        subjects[name] = Subject(partial(build, name), like, dtype)
    return subjects


def sampler(run: Any) -> dict[str, Any]:
    model = make_model(run.shapes)
    stocks = _stock_samplers(run, model)
    draw = ours.sampler(model, ours.Setup(dtype=run.dtype, vae_dtype=run.dtype))
    rows = []
    for count in run.sample_batches:
        for steps in run.steps:

            def build(count=count, steps=steps):
                call = partial(draw, count, steps)
                return (np.asarray(call(), np.float32) + 1) / 2, call

            subjects = {"ours": Subject(build, "ours", run.dtype)}
            for name, stock in stocks.items():
                subjects[name] = Subject(partial(stock, count, steps), "ours", run.dtype)
            # All share the weights: they fit, and take turns on a GPU too.
            times = race(subjects, picture_difference, run.repeats, _warm(run, rows), True)
            for row in times.values():
                row["ms"] = 1e3 * row["median_s"]
            rows.append({"batch": count, "steps": steps, "subjects": times})
    return {"rows": rows}


def _warm(run: Any, before: list) -> float:
    """The whole warm-up before the first row; later the device is warm already."""
    return run.warm_seconds if not before else run.warm_seconds / 20


def _stock_samplers(run: Any, model: Any) -> dict[str, Callable]:
    """(pictures, steps) -> what `Subject.build` does, for each of diffusers' pipelines."""
    names = [name for name in run.peers if name in ("stock", "stock_compiled")]
    if not names:
        return {}
    import peers

    device = peers.prepare(result.threads())

    def build(stock, count, steps):
        prompts = peers.on_device(ours.prompts(model, count), device)
        drawn = stock(prompts, steps, ours.sampler_noise(model, count, steps))
        pictures = np.moveaxis(drawn.float().cpu().numpy(), 1, -1)
        return pictures, partial(stock, prompts, steps)

    samplers = {}
    for name in names:
        on_gpu = device.type == "cuda"
        nets = peers.networks(model, device, run.dtype, on_gpu, unets=("student",))
        mode = run.compile_mode if name == "stock_compiled" else None
        samplers[name] = partial(build, peers.stock_sampler(nets, 50, mode))
    return samplers


def vae(run: Any) -> dict[str, Any]:
    model = make_model(run.shapes)
    bind = ours.vae_decode(model, ours.Setup(vae_dtype=run.dtype))
    names = [name for name in run.peers if name in ("stock", "stock_compiled")]
    rows = []
    for count in run.sample_batches:
        shape = count, *model.pipeline.latent_shape
        latents = np.random.default_rng(0).standard_normal(shape, np.float32)

        def build(latents=latents):
            call = bind(latents)
            return (np.asarray(call(), np.float32) + 1) / 2, call

        subjects = {"ours": Subject(build, "ours", run.dtype)}
        for name in names:
            peer = partial(_torch_vae, run, model, latents, name)
            subjects[name] = Subject(peer, "ours", run.dtype)
        times = race(subjects, picture_difference, run.repeats, _warm(run, rows), True)
        for row in times.values():
            row["ms"] = 1e3 * row["median_s"]
        rows.append({"batch": count, "subjects": times})
    return {"rows": rows}


def _torch_vae(run: Any, model: Any, latents: np.ndarray, name: str) -> tuple:
    import peers

    device = peers.prepare(result.threads())
    mode = run.compile_mode if name == "stock_compiled" else None
    call = peers.vae_decode(model, device, run.dtype, latents, mode)
    return np.moveaxis(call().float().cpu().numpy(), 1, -1), call


def compile(run: Any) -> dict[str, Any]:
    """Two starts of a process that trains one step, which keep and find what was compiled."""
    script = [sys.executable, __file__, run.shapes, str(run.batch), run.dtype]
    with tempfile.TemporaryDirectory(prefix="compiled-") as cache:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        starts = {}
        for name in ("cold", "with_cache"):
            began = time.perf_counter()
            output = subprocess.run(
                script, check=True, stdout=subprocess.PIPE, text=True, env=environment
            ).stdout
            whole = time.perf_counter() - began
            seconds = json.loads(output.splitlines()[-1])
            rest = whole - sum(seconds.values())
            starts[name] = {"imports_and_exit_s": rest, **seconds, "whole_process_s": whole}
        files = len(list(Path(cache).iterdir()))
    return {"batch": run.batch, "files_kept": files, **starts}


def one_step(shapes: str, batch: int, dtype: str) -> dict[str, float]:
    """Seconds until a training step has run in this process, by what they went to."""
    marks = [("start", time.perf_counter())]
    model = make_model(shapes)
    rows = ours.batch_for(make_batch(model, batch), with_pictures=False)
    marks.append(("random_weights", time.perf_counter()))
    step, *arguments = ours.train_arguments(model, rows, ours.Setup(dtype=dtype))
    marks.append(("state_on_device", time.perf_counter()))
    lowered = step.lower(*arguments)
    marks.append(("trace_and_lower", time.perf_counter()))
    compiled = lowered.compile()
    marks.append(("compile", time.perf_counter()))
    timing.wait(compiled(*arguments))
    marks.append(("first_step", time.perf_counter()))
    pairs = zip(marks, marks[1:], strict=False)
    return {f"{name}_s": end - start for (_, start), (name, end) in pairs}


def loader(run: Any) -> dict[str, Any]:
    """Prepared latents of 512-pixel pictures, whatever the shapes, as benchmarks/data.py does."""
    quick = run.repeats <= 2
    with tempfile.TemporaryDirectory(prefix="latents-") as folder:
        return data.measure_cached(Path(folder), quick, 0.02 if quick else 0.5)


if __name__ == "__main__":  # the process that `compile` starts
    from slam_jax import runtime

    runtime.configure()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    print(json.dumps(one_step(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
