"""A distillation on any mesh is the same distillation, and the devices say little to each other."""

import dataclasses
import re
from math import prod

import jax
import numpy as np
import pytest
from small_digits import CONFIG, LORA, Run

from slam_jax.models import functional
from slam_jax.parallel.sharding import shardings_of

STEPS = 6


@pytest.fixture(scope="module", params=[CONFIG, LORA], ids=["full", "lora"])
def config(request):
    return request.param


@pytest.fixture(scope="module")
def reference(config):
    return Run(1, 1, 1, config).losses(STEPS)


# (devices, fsdp, accumulation); the data-parallel one without parts runs in test_many_processes.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "remat"),
    [
        ((8, 4, 2), "full"),  # which gathers weights twice
        pytest.param((8, 4, 2), "none", marks=pytest.mark.nightly),
        pytest.param((8, 1, 4), "none", marks=pytest.mark.nightly),
    ],
)
def test_losses_are_the_same_on_any_mesh_and_in_any_parts(reference, config, layout, remat):
    training = dataclasses.replace(config.training, remat=remat)
    run = Run(*layout, dataclasses.replace(config, training=training))
    before = jax.tree.map(lambda array: array.sharding, run.state)
    losses = run.losses(STEPS)
    np.testing.assert_allclose(losses[:, 0], reference[:, 0], rtol=1e-5)
    # The pseudo-Huber loss is steep where it is small: its gradient shows rounding more.
    np.testing.assert_allclose(losses, reference, rtol=2e-4)
    assert jax.tree.all(jax.tree.map(lambda a, s: a.sharding == s, run.state, before))
    assert before == shardings_of(run.state, run.mesh)
    assert run.step._cache_size() == 1


COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def collectives(compiled):
    """{(kind, whether it is in a loop): bytes of the results} of a compiled program."""
    found, in_loop, text = {}, False, compiled.as_text()
    bodies = set(re.findall(r" while\(.*?body=(%[\w.-]+)", text))
    for line in text.splitlines():
        if line.endswith("{"):  # a computation begins
            in_loop = line.split()[0] in bodies
        match = re.search(rf"= (.*?) ({COLLECTIVES})(-start)?\(", line)
        if match:
            arrays = re.findall(r"\b(?:f|s|u|bf|pred)(\d*)\[([\d,]*)\]", match[1])
            size = sum(
                int(bits or 8) // 8 * prod(map(int, shape.split(",") if shape else ()))
                for bits, shape in arrays
            )
            key = match[2], in_loop
            found[key] = found.get(key, 0) + size
    return found


@pytest.mark.parametrize("accumulation", [2, pytest.param(1, marks=pytest.mark.nightly)])
def test_gradients_are_summed_over_the_devices_once_a_step_and_little_else(accumulation):
    run = Run(8, 1, accumulation)
    size = 4 * functional.count_params(run.params)
    (((kind, in_loop), sent),) = collectives(run.compiled()).items()
    assert (kind, in_loop) == ("all-reduce", False)
    # XLA sums equal gradients once: those of a convolution's bias and of the time that is added.
    assert 0.95 * size < sent <= 1.05 * size
