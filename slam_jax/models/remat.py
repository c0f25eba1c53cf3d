"""What the backward pass computes again instead of keeping it: less memory for more arithmetic.

    none     nothing
    minimal  norms, activations and attention; kept are each block's input and what convolutions and
             matrix products with weights make
    full     whole blocks; kept are their inputs only. Weights that are split over devices are
             gathered again for them, see `parallel.sharding.gathered_grad`

The names are those of T5X and MaxText. Values and gradients stay what they are.
"""

from collections.abc import Callable

import jax

# A function of arrays -> the same function, whose backward pass computes it again.
Remat = Callable[[Callable], Callable]


def _is_costly(primitive, *_, **params) -> bool:
    """Whether an operation's result is kept by "minimal"."""
    if primitive is jax.lax.dot_general_p:
        _, (batch_dimensions, _) = params["dimension_numbers"]
        return not batch_dimensions  # those with any are between activations, as in attention
    return primitive is jax.lax.conv_general_dilated_p


REMAT: dict[str, Remat] = {
    "none": lambda block: block,
    "minimal": lambda block: jax.checkpoint(block, policy=_is_costly),
    "full": jax.checkpoint,
}


def remat_named(name: str) -> Remat:
    """The entry of REMAT.

    Raises:
        ValueError: there is none.
    """
    if name not in REMAT:
        raise ValueError(f"remat = {name!r}, expected one of {', '.join(REMAT)}")
    return REMAT[name]
