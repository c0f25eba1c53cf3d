"""A distillation on any mesh is the same distillation, and the devices say little to each other."""

import dataclasses
import re
from contextlib import closing
from math import prod

import jax
import numpy as np
import pytest

from slam_jax.config import Config, DigitsTeacher, Optimizer, Training
from slam_jax.data import digits
from slam_jax.data.batches import Batches
from slam_jax.distill import student_step
from slam_jax.loss import Method
from slam_jax.models import functional
from slam_jax.models.digits_pipeline import digits_pipeline
from slam_jax.models.execution import Execution
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.sharding import make_mesh, put, put_batch, shardings_of

UNET = UNetConfig(
    sample_size=4,
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    block_out_channels=(16,),
    layers_per_block=1,
    cross_attention_dim=12,
    attention_head_dim=2,
    norm_num_groups=8,
)
CONFIG = Config(
    digits=DigitsTeacher(unet=UNET),
    method=Method(w=2.0, gamma="paired", gammas_per_subpath=2, conditioning="both"),
    training=Training(steps=20, batch_size=32, optimizer=Optimizer(learning_rate=8e-6)),
)
PIPELINE = digits_pipeline(UNET, "epsilon")
# (devices, fsdp, accumulation); the data-parallel one without parts runs in test_many_processes.
LAYOUTS = [(1, 1, 1), (8, 1, 4), (8, 4, 2)]


class Run:
    """A distillation of the digits on some devices."""

    def __init__(self, devices, fsdp, accumulation, config=CONFIG, execution=Execution()):
        training = dataclasses.replace(config.training, accumulation=accumulation)
        pipeline = dataclasses.replace(PIPELINE, execution=execution)
        self.mesh = make_mesh(-1, fsdp, jax.devices()[:devices])
        self.step, init = student_step(
            dataclasses.replace(config, training=training), pipeline, self.mesh
        )
        self.params = functional.init(UNet2DConditionModel, UNET, jax.random.key(0))
        teacher = functional.init(UNet2DConditionModel, UNET, jax.random.key(1))
        teacher = functional.cast(teacher, config.precision.teacher)
        dim, channels = 256, UNET.block_out_channels[0]
        projection = {"kernel": np.zeros((dim, channels), np.float32)}
        self.params["time_embedding"]["cond_proj"] = projection
        self.state = init(put(self.params, self.mesh))
        self.frozen = put({"unet": teacher}, self.mesh)

    def losses(self, steps):
        history = []
        with closing(Batches(digits.Source(), 32, seed=0).iterate(0)) as batches:
            for _ in range(steps):
                batch = put_batch(next(batches), self.mesh)
                self.state, metrics = self.step(self.state, self.frozen, batch)
                history.append([metrics[name] for name in ("loss", "grad_norm", "loss_gamma3")])
        return np.array(history, np.float64)

    def compiled(self):
        with closing(Batches(digits.Source(), 32, seed=0).iterate(0)) as batches:
            batch = put_batch(next(batches), self.mesh)
        return self.step.lower(self.state, self.frozen, batch).compile()


@pytest.fixture(scope="module")
def reference():
    return Run(*LAYOUTS[0]).losses(20)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_losses_are_the_same_on_any_mesh_and_in_any_parts(reference, layout):
    run = Run(*layout)
    before = jax.tree.map(lambda array: array.sharding, run.state)
    losses = run.losses(20)
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


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_are_summed_over_the_devices_once_a_step_and_little_else(accumulation):
    run = Run(8, 1, accumulation)
    size = 4 * functional.count_params(run.params)
    (((kind, in_loop), sent),) = collectives(run.compiled()).items()
    assert (kind, in_loop) == ("all-reduce", False)
    # XLA sums equal gradients once: those of a convolution's bias and of the time that is added.
    assert 0.95 * size < sent <= 1.05 * size
