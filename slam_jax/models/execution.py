"""How networks are computed: choices that change speed and memory, and results only by rounding."""

from dataclasses import dataclass

from slam_jax.base.options import Options, option

ATTENTION = ("auto", "xla", "cudnn", "splash", "chunked")


@dataclass(frozen=True)
class Execution(Options):
    """How a network is computed; parameters keep their names and results agree up to rounding.

    Layers that have a choice read it from their attribute `execution`, which
    `functional.apply_fn` sets.
    """

    attention: str = option(
        "auto", "what computes attention, see models.attention", one_of=ATTENTION
    )
