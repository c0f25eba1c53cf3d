"""What speed.py measures, one function for each part; it returns what goes into the result."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import data
import numpy as np
import ours
import result
from race import (
    Difference,
    Subject,
    agree_in_float32,
    free,
    loss_difference,
    picture_difference,
    precision,
    race,
)
from shapes import make_batch, make_model
from starts import first_steps

from slam_jax.method.slam import Slam

PARITY_STEPS, PARITY_ROWS = 3, 2
# Precision of the authors' step: float16 on a GPU, as in their README.
AUTHORS_DTYPE = {"bfloat16": "float16", "float32": "float32"}


def train_step(run: Any) -> dict[str, Any]:
    model = make_model(run.shapes)
    checked = _checked(run, partial(_training_subjects, run, model), loss_difference)
    subjects = _training_subjects(run, model)
    times = race(subjects, loss_difference, run.repeats, run.warm_seconds, run.turns)
    one = ours.batch_for(make_batch(model, 1), with_pictures=False)
    flops, peak = ours.flops_per_sample(model, one), result.device()["peak_tflops"]
    for name, row in times.items():
        row |= checked.get(name, {})
        if "failed" in row:
            continue
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


def _checked(
    run: Any, subjects_of: Callable[..., dict[str, Subject]], difference: Difference
) -> dict[str, dict[str, Any]]:
    """Of few rows in float32, where the run's precision would hide a difference; uncompiled, as
    what is compiled is compared anyway.

    Raises:
      ParityError: two subjects do not compute the same.
    """
    if precision(run.dtype) == "float32" or not run.in_float32:
        return {}
    names = dict.fromkeys(name.removesuffix("_compiled") for name in run.peers)
    few = {"batch": PARITY_ROWS, "dtype": "float32", "peers": tuple(names), "calls": 1}
    subjects = subjects_of(**few)
    computations = {name: partial(_computed, subject) for name, subject in subjects.items()}
    like = {name: subject.like for name, subject in subjects.items()}
    found = agree_in_float32(computations, like, difference)
    return found | {f"{name}_compiled": row for name, row in found.items()}


def _computed(subject: Subject) -> np.ndarray:
    return subject.build()[0]


def _training_subjects(run: Any, model: Any, **changes: Any) -> dict[str, Subject]:
    """Ours first, then the peers."""
    run = replace(run, **changes)
    batch = make_batch(model, run.batch)
    cached, pictures = (ours.batch_for(batch, with_pictures) for with_pictures in (False, True))

    def build(rows):
        advance = ours.train_step(model, rows, ours.Setup(dtype=run.dtype))
        losses = np.array([float(advance()) for _ in range(PARITY_STEPS)])
        return losses, partial(repeated, advance, run.calls)

    subjects = {"ours": Subject(partial(build, cached), "ours", precision(run.dtype))}
    if "authors" in run.peers:
        subjects["ours_from_pictures"] = Subject(partial(build, pictures), "ours_from_pictures")
    return subjects | _training_peers(run, model, cached, pictures)


def _training_peers(run: Any, model: Any, cached: dict, pictures: dict) -> dict[str, Subject]:
    """The peers' training steps; torch is imported for them only."""
    names = [name for name in run.peers if name in ("authors", "tuned", "tuned_compiled")]
    method = Slam()

    def build(name):
        import peer_steps
        import peers

        device = peers.prepare(result.threads())
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
        subjects[name] = Subject(partial(build, name), like, precision(dtype))
    return subjects


def sampler(run: Any) -> dict[str, Any]:
    model = make_model(run.shapes)

    def few(**changes):
        subjects_of = _sampler_subjects(replace(run, **changes), model)
        return subjects_of(PARITY_ROWS, PARITY_STEPS)

    checked = _checked(run, few, picture_difference)
    subjects_of, rows = _sampler_subjects(run, model), []
    for count in run.sample_batches:
        for steps in run.steps:
            # All share the weights: they fit, and take turns on a GPU too.
            found = _race_of_pictures(run, subjects_of(count, steps), checked, rows)
            rows.append({"batch": count, "steps": steps, "subjects": found})
        free()
    return {"rows": rows}


def _race_of_pictures(
    run: Any, subjects: dict[str, Subject], checked: dict[str, dict], before: list
) -> dict[str, dict[str, Any]]:
    times = race(subjects, picture_difference, run.repeats, warm(run, before), True)
    for name, row in times.items():
        row |= checked.get(name, {})
        if "failed" not in row:
            row["ms"] = 1e3 * row["median_s"]
    return times


def warm(run: Any, before: Sequence) -> float:
    """The whole warm-up before the first row; later the device is warm already."""
    return run.warm_seconds if not before else run.warm_seconds / 20


def _sampler_subjects(run: Any, model: Any) -> Callable[[int, int], dict[str, Subject]]:
    """(pictures, steps) -> ours, and diffusers' pipelines, which are made when first called."""
    draw = ours.sampler(model, ours.Setup(dtype=run.dtype, vae_dtype=run.dtype))
    names = [name for name in run.peers if name in ("stock", "stock_compiled")]
    stocks: dict[str, Callable] = {}

    def build(count, steps):
        call = partial(draw, count, steps)
        return (np.asarray(call(), np.float32) + 1) / 2, call

    def build_stock(name, count, steps):
        import peers

        device = peers.prepare(result.threads())
        if name not in stocks:
            on_gpu = device.type == "cuda"
            nets = peers.networks(model, device, run.dtype, on_gpu, unets=("student",))
            mode = run.compile_mode if name == "stock_compiled" else None
            stocks[name] = peers.stock_sampler(nets, 50, mode)
        prompts = peers.on_device(ours.prompts(model, count), device)
        drawn = stocks[name](prompts, steps, ours.sampler_noise(model, count, steps))
        pictures = np.moveaxis(drawn.float().cpu().numpy(), 1, -1)
        return pictures, partial(stocks[name], prompts, steps)

    def subjects_of(count: int, steps: int) -> dict[str, Subject]:
        dtype = precision(run.dtype)
        found = {"ours": Subject(partial(build, count, steps), "ours", dtype)}
        for name in names:
            found[name] = Subject(partial(build_stock, name, count, steps), "ours", dtype)
        return found

    return subjects_of


def vae(run: Any) -> dict[str, Any]:
    model, rows = make_model(run.shapes), []

    def few(batch, **changes):
        return _vae_subjects(replace(run, **changes), model, batch)

    checked = _checked(run, few, picture_difference)
    for count in run.sample_batches:
        found = _race_of_pictures(run, _vae_subjects(run, model, count), checked, rows)
        rows.append({"batch": count, "subjects": found})
        free()
    return {"rows": rows}


def _vae_subjects(run: Any, model: Any, count: int) -> dict[str, Subject]:
    shape = count, *model.pipeline.latent_shape
    latents = np.random.default_rng(0).standard_normal(shape, np.float32)

    def build():
        call = ours.vae_decode(model, ours.Setup(vae_dtype=run.dtype))(latents)
        return (np.asarray(call(), np.float32) + 1) / 2, call

    subjects = {"ours": Subject(build, "ours", precision(run.dtype))}
    for name in run.peers:
        if name in ("stock", "stock_compiled"):
            peer = partial(_torch_vae, run, model, latents, name)
            subjects[name] = Subject(peer, "ours", precision(run.dtype))
    return subjects


def _torch_vae(run: Any, model: Any, latents: np.ndarray, name: str) -> tuple:
    import peers

    device = peers.prepare(result.threads())
    mode = run.compile_mode if name == "stock_compiled" else None
    call = peers.vae_decode(model, device, run.dtype, latents, mode)
    return np.moveaxis(call().float().cpu().numpy(), 1, -1), call


def loader(run: Any) -> dict[str, Any]:
    """Prepared latents of 512-pixel pictures, whatever the shapes, as benchmarks/data.py does."""
    quick = run.repeats <= 2
    with tempfile.TemporaryDirectory(prefix="latents-") as folder:
        return data.measure_cached(Path(folder), quick, 0.02 if quick else 0.5)


PARTS = {
    "train_step": train_step,
    "sampler": sampler,
    "vae": vae,
    "compile": first_steps,
    "loader": loader,
}
