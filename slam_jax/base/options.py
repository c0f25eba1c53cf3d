"""Options: frozen dataclasses whose fields know what they mean and which values they take.

    @dataclass(frozen=True)
    class Optimizer(Options):
        learning_rate: float = option(8e-6, "of AdamW, at its highest", above=0)

An object with an impossible value cannot be made. What is known of a field stands at the field
alone: its meaning (from which the documentation is made), its range, and whether it may change when
a run goes on.
"""

import dataclasses
import functools
from typing import Any, get_args, get_origin, get_type_hints

from slam_jax.base.values import expected_of

KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}


class OptionError(ValueError):
    """An option has an impossible value.

    Attributes:
      key: its name, such as "optimizer.learning_rate".
      value: what was given.
      expected: what is possible, in words.
    """

    def __init__(self, key: str, value: Any, expected: str):
        super().__init__(f"{key} = {value!r}, expected {expected}")
        self.key, self.value, self.expected = key, value, expected


def check(condition: bool, key: str, value: Any, expected: str) -> None:
    """Raises OptionError where the condition does not hold."""
    if not condition:
        raise OptionError(key, value, expected)


def option(default: Any, doc: str, **facts: Any) -> Any:
    """A field.

    Args:
      default: its value unless another one is given.
      doc: what it means.
      facts: some of `one_of` (the values there are), `at_least`, `at_most`, `above`, `below` (of a
        number, or of each number in a tuple), `free` (it may change when a run goes on: no weight
        depends on it), `read_by` (the kinds of data sources that read it).
    """
    return dataclasses.field(default=default, metadata={"doc": doc, **facts})


def group(default: Any, doc: str, **facts: Any) -> Any:
    """A field that is a group of options; `default` makes it."""
    return dataclasses.field(default_factory=default, metadata={"doc": doc, **facts})


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of dataclasses of options; checks each field's type and range.

    Raises:
      OptionError: an impossible value.
    """

    def __post_init__(self):
        kinds = kinds_of(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            check_type(field.name, value, kinds[field.name])
            check_range(field.name, value, field.metadata)


@functools.cache
def kinds_of(cls: type) -> dict[str, Any]:
    """The type of each field, also where annotations are texts."""
    return get_type_hints(cls)


def check_type(key: str, value: Any, kind: Any) -> None:
    """Compares a value with the type of its field: one of KINDS, a tuple of such, or a dict.

    Raises:
      OptionError: it is of another type.
    """
    if kind in KINDS:
        right = type(value) is kind or (kind is float and type(value) is int)
        check(right, key, value, KINDS[kind])
    elif get_origin(kind) is tuple:
        check(isinstance(value, tuple), key, value, "several values, such as (1, 2)")
        for item in value:
            check_type(key, item, get_args(kind)[0])
    elif get_origin(kind) is dict:
        check(isinstance(value, dict), key, value, "a group of values")


def check_range(key: str, value: Any, facts: Any) -> None:
    """Compares a value, or each in a tuple, with what `option` was told.

    Raises:
      OptionError: it is out of range, or one that no option can have.
    """
    if "one_of" in facts:
        check(
            value in facts["one_of"], key, value, f"one of {', '.join(map(str, facts['one_of']))}"
        )
    for number in value if isinstance(value, tuple) else (value,):
        expected = expected_of(number)
        check(expected is None, key, value, str(expected))
        for name, holds in RANGES.items():
            if name in facts:
                check(holds(number, facts[name]), key, value, in_words(facts))


RANGES = {
    "at_least": lambda number, bound: number >= bound,
    "above": lambda number, bound: number > bound,
    "at_most": lambda number, bound: number <= bound,
    "below": lambda number, bound: number < bound,
}


def in_words(facts: Any) -> str:
    """The range of an option, such as "a number above 0"; "" where there is none."""
    if "one_of" in facts:
        return f"one of {', '.join(map(str, facts['one_of']))}"
    bounds = [f"{name.replace('_', ' ')} {facts[name]}" for name in RANGES if name in facts]
    return f"a number {' and '.join(bounds)}" if bounds else ""
