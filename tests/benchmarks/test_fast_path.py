"""A distillation that is computed faster is the same distillation: 200 steps of the digits."""

import dataclasses

import numpy as np
import pytest
from small_digits import CONFIG, Run

from slam_jax.config.options import Optimizer, Precision
from slam_jax.models.execution import Execution

STEPS = 200


def curve(attention, precision):
    """The losses, each the mean of 10 steps."""
    optimizer = Optimizer(learning_rate=5e-4)  # of configs/digits.py, where differences grow
    training = dataclasses.replace(CONFIG.training, optimizer=optimizer, steps=STEPS)
    config = dataclasses.replace(CONFIG, training=training, precision=precision)
    losses = Run(1, 1, 1, config, Execution(attention)).losses(STEPS)[:, 0]
    return losses.reshape(-1, 10).mean(axis=1)


@pytest.mark.nightly
def test_losses_of_the_fast_path_are_those_of_the_plain_one():
    plain = curve("xla", Precision())
    assert plain[-1] < 0.8 * plain[0]  # it learns
    np.testing.assert_allclose(curve("chunked", Precision(teacher="bfloat16")), plain, rtol=0.01)
