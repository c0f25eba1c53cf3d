"""Options say what is wrong with a value: key, value, and what was expected."""

import math
from dataclasses import dataclass

import pytest

from slam_jax.base.errors import InputError, options_of
from slam_jax.base.options import OptionError, Options, check, in_words, option


@dataclass(frozen=True)
class Every(Options):
    """An option of each kind."""

    count: int = option(3, "how many", at_least=1, at_most=5)
    rate: float = option(0.5, "how fast", above=0, below=1)
    free: float = option(-7.0, "any number")
    name: str = option("a", "which", one_of=("a", "b"))
    text: str = option("", "anything")
    on: bool = option(False, "whether")
    sizes: tuple[int, ...] = option((1, 2), "of parts", at_least=1)
    shares: tuple[float, ...] = option((), "of parts", at_least=0, at_most=1)
    words: tuple[str, ...] = option((), "of a text")
    values: dict[str, int] = option(None, "of things")

    def __post_init__(self):
        object.__setattr__(self, "values", {} if self.values is None else self.values)
        super().__post_init__()


@pytest.mark.parametrize(
    "given",
    [
        *(dict(count=n) for n in (1, 5)),
        *(dict(rate=x) for x in (1e-9, 1 - 1e-9)),
        *(dict(free=x) for x in (0, -1e300, 10**6)),  # a whole number is a number
        *(dict(name="b"), dict(text="b\nc"), dict(on=True)),
        *(dict(sizes=()), dict(sizes=(1, 9)), dict(shares=(0, 0.5, 1)), dict(words=("", "x"))),
        dict(values={"a": 1}),
    ],
)
def test_values_in_their_range_are_kept(given):
    ((name, value),) = given.items()
    assert getattr(Every(**given), name) == value


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *((dict(count=n), "a number at least 1 and at most 5") for n in (0, 6, -1)),
        *((dict(count=n), "a whole number") for n in (1.0, 2.5, True, "2", None, math.nan)),
        *((dict(rate=x), "a number above 0 and below 1") for x in (0, 1, -0.5, 2)),
        *((dict(rate=x), "a finite number") for x in (math.nan, math.inf, -math.inf)),
        *((dict(free=x), "a finite number") for x in (math.nan, math.inf, -math.inf)),
        *((dict(free=x), "a number") for x in (True, "1", None, (1.0,))),
        *((dict(name=x), "one of a, b") for x in ("c", "", "A")),
        *((dict(text=x), "a text") for x in (1, None, ("a",), b"a")),
        *((dict(on=x), "True or False") for x in (0, 1, "True", None)),
        *((dict(sizes=x), "several values") for x in (1, "12", None, [1, 2], {1})),
        (dict(sizes=(1, 0)), "a number at least 1"),
        (dict(sizes=(1, 10**30)), "at most 2,147,483,647"),
        *((dict(sizes=(1, x)), "a whole number") for x in (1.0, True, "1", None)),
        (dict(shares=(0.5, math.nan)), "a finite number"),
        (dict(shares=(0.5, 1.5)), "a number at least 0 and at most 1"),
        *((dict(words=x), "several values") for x in ("abc", None)),
        (dict(words=("a", 1)), "a text"),
        *((dict(values=x), "a group of values") for x in (1, "a", ())),
    ],
)
def test_other_values_are_refused_by_name(given, expected):
    ((name, value),) = given.items()
    with pytest.raises(OptionError) as caught:
        Every(**given)
    assert caught.value.key == name
    assert caught.value.expected.startswith(expected)
    assert str(caught.value) == f"{name} = {caught.value.value!r}, expected {caught.value.expected}"
    inside = isinstance(value, tuple) and caught.value.value in value
    assert inside or caught.value.value is value


def test_what_a_command_says_has_the_whole_path():
    with pytest.raises(InputError) as caught, options_of("config.training"):
        raise OptionError("optimizer.b1", 2.0, "a number below 1")
    assert str(caught.value) == "config.training.optimizer.b1 = 2.0, expected a number below 1"
    with pytest.raises(ZeroDivisionError), options_of("config"):
        raise ZeroDivisionError  # nothing else becomes an InputError
    with pytest.raises(ValueError, match="^no option$") as caught, options_of("config"):
        raise ValueError("no option")
    assert not isinstance(caught.value, InputError)


def test_check_and_ranges_in_words():
    check(True, "x", 1, "anything")
    with pytest.raises(OptionError, match="^x = 1, expected 2$"):
        check(False, "x", 1, "2")
    assert in_words({"one_of": ("a", "b"), "doc": ""}) == "one of a, b"
    assert in_words({"above": 0, "at_most": 2}) == "a number above 0 and at most 2"
    assert in_words({"doc": "", "free": True}) == ""
