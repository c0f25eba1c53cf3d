"""A distillation that is computed faster is the same distillation: 200 steps of the digits."""

import dataclasses

import numpy as np
import pytest
from small_digits import CONFIG, Run

from slam_jax.config.options import Optimizer, Precision
from slam_jax.models.execution import Execution

STEPS = 200
PLAIN = Execution(attention="xla", norm="two_pass", projections="separate")
OTHER = Execution(attention="chunked", norm="one_pass", projections="fused")
FLOAT32 = Precision()


def curve(execution, teacher_passes, precision=FLOAT32):
    """The losses, each the mean of 10 steps."""
    optimizer = Optimizer(learning_rate=5e-4)  # of configs/digits.py, where differences grow
    training = dataclasses.replace(
        CONFIG.training, optimizer=optimizer, steps=STEPS, teacher_passes=teacher_passes
    )
    config = dataclasses.replace(CONFIG, training=training, precision=precision)
    losses = Run(1, 1, 1, config, execution).losses(STEPS)[:, 0]
    return losses.reshape(-1, 10).mean(axis=1)


@pytest.fixture(scope="module")
def plain():
    losses = curve(PLAIN, teacher_passes=2)
    assert losses[-1] < 0.8 * losses[0]  # it learns
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("precision", [FLOAT32, Precision(teacher="bfloat16")])
def test_losses_of_the_fast_path_are_those_of_the_plain_one(plain, precision):
    np.testing.assert_allclose(curve(OTHER, 1, precision), plain, rtol=0.01)
