"""Nested mappings, such as weights and configs, compared."""

import operator
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any


class Missing(Enum):
    """Stands where a tree has nothing."""

    MISSING = "missing"


MISSING = Missing.MISSING


def differences(
    a: Any, b: Any, same: Callable[[Any, Any], bool] = operator.eq, path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Where two trees differ: (dotted path, what `a` has there, what `b` has there).

    In the order of the keys of `a`, then of those that only `b` has.

    Args:
      a, b: nested mappings; anything else is a leaf.
      same: compares two leaves.
      path: dotted name of the two.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            values = a.get(key, MISSING), b.get(key, MISSING)
            yield from differences(*values, same, f"{path}.{key}" if path else str(key))
    elif any(x is MISSING or isinstance(x, Mapping) for x in (a, b)) or not same(a, b):
        yield path, a, b
