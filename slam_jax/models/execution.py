"""How networks are computed: choices that change speed and memory, and results only by rounding."""

from dataclasses import dataclass

ATTENTION = ("auto", "xla", "cudnn", "chunked")
NORM = ("one_pass", "two_pass")
PROJECTIONS = ("fused", "separate")


@dataclass(frozen=True)
class Execution:
    """How a network is computed; parameters keep their names and results agree up to rounding.

    Layers that have a choice read it from their attribute `execution`, which
    `functional.apply_fn` sets.

    Attributes:
        attention: who computes it, of `attention.attention`.
        norm: passes over the data for a GroupNorm's statistics.
        projections: q, k and v of self-attention (k and v of cross-attention) as one matrix
            product, or each by its own.
    """

    attention: str = "auto"
    norm: str = "one_pass"
    projections: str = "separate"

    def __post_init__(self):
        names = {"attention": ATTENTION, "norm": NORM, "projections": PROJECTIONS}
        for option, valid in names.items():
            value = getattr(self, option)
            if value not in valid:
                raise ValueError(f"{option} = {value!r}, expected one of {', '.join(valid)}")
