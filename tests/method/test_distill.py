"""What is particular to the loss of a distillation: how the teacher is asked."""

import jax.numpy as jnp
import numpy as np
from helpers import normal

from slam_jax.recipes.distil import in_two_passes


def test_two_passes_are_one_function_of_half_the_rows_each():
    sizes = []

    def denoise(x, t, context):
        sizes.append(x.shape[0])
        return x * t[:, None, None, None] + context["a"].sum(axis=1)[:, None, None, None]

    x, t, context = normal(0, 6, 2, 2, 3), jnp.arange(6.0), {"a": normal(1, 6, 5)}
    np.testing.assert_array_equal(in_two_passes(denoise)(x, t, context), denoise(x, t, context))
    assert sizes == [3, 3, 6]
