"""What a traced program consists of."""

from collections import Counter

import jax.extend.core


def operations(jaxpr):
    """How often each primitive is in a jaxpr; matrix products with batch dimensions apart."""
    counts = Counter()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general" and equation.params["dimension_numbers"][1][0]:
            name = "batched dot_general"
        counts[name] += 1
        for value in equation.params.values():
            if isinstance(value, jax.extend.core.ClosedJaxpr):
                value = value.jaxpr
            if isinstance(value, jax.extend.core.Jaxpr):
                counts += operations(value)
    return counts
