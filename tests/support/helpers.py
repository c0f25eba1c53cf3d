"""What several tests compare with: SD's schedule, data whose denoiser is known, errors."""

import os
import signal
from contextlib import closing
from functools import partial

import jax
import numpy as np
import pytest

from slam_jax.base.errors import InputError
from slam_jax.data.batches import Batches
from slam_jax.method.variance_preserving import VariancePreserving

# Compiled with little optimisation: compiling is where these tests spend their time.
jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)

SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def sd_schedule(prediction_type="epsilon", zero_snr=False):
    return VariancePreserving.from_config(
        {**SD, "prediction_type": prediction_type, "rescale_betas_zero_snr": zero_snr}
    )


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def gaussian_x0(x, alpha, sigma, mean, std):
    """E[x_0 | x] when every element of x_0 is N(mean, std^2) and x = alpha x_0 + sigma eps."""
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    return mean + gain * (x - alpha * mean)


def as_output(x0, x, alpha, sigma, prediction_type):
    """The network output that means x0; the definitions, for x = alpha x0 + sigma eps."""
    eps = (x - alpha * x0) / sigma
    outputs = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}
    return outputs[prediction_type]


def assert_close(actual, expected, tolerance):
    """Equal shapes, and no error above `tolerance` of the largest element of the same example."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    assert actual.shape == expected.shape
    axes = tuple(range(1, expected.ndim))
    error = np.abs(actual - expected).max(axis=axes)
    assert np.all(error <= tolerance * np.abs(expected).max(axis=axes))


def assert_same_gradients(actual, expected, tolerance=1e-5):
    """Gradients by torch key: within `tolerance` as a whole, and 1e-4 of each array."""
    total = np.sqrt(sum(np.sum(g**2) for g in expected.values()))
    errors = {key: np.linalg.norm(actual[key] - g) for key, g in expected.items()}
    assert np.linalg.norm(list(errors.values())) <= tolerance * total
    for key, error in errors.items():
        assert error <= 1e-4 * np.linalg.norm(expected[key]) + 1e-7 * total, key


def refusal(function, *args):
    """The one line that `function(*args)` refuses its input with."""
    with pytest.raises(InputError) as error:
        function(*args)
    message = str(error.value)
    assert "\n" not in message
    return message


def interrupt_in_step(monkeypatch, number):
    """Sends Ctrl-C when batch `number` is taken, counted over all training loops."""
    original, taken = Batches.iterate, []

    def interrupted(*arguments):
        with closing(original(*arguments)) as batches:
            for batch in batches:
                taken.append(1)
                if len(taken) == number:
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

    monkeypatch.setattr(Batches, "iterate", interrupted)


def files_in(folder):
    """The contents of every file below a folder, by its path there."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
