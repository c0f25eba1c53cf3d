"""What no option can be is told apart from what one can."""

import math
from pathlib import Path

import pytest

from slam_jax.base.values import expected_of


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "a finite number"),
        ((1.0, -math.inf), "a finite number"),
        (2**31, "at most 2,147,483,647"),
        (-(2**31), "at least -2,147,483,647"),
        ("a\0b", "text without a NUL"),
        ("\udc80", "text in UTF-8"),
        (Path("x/\0"), "text without a NUL"),
        (Path("\udce9" * 256), "names of at most 255 bytes"),
        (Path("x") / ("é" * 128) / "y", "names of at most 255 bytes"),
        (["a", "\udc80"], "text in UTF-8"),
    ],
)
def test_what_is_impossible(value, expected):
    assert expected_of(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        1.5,
        True,
        None,
        "",
        "é" * 300,
        Path("x/" * 200),
        Path("é" * 127),
        Path("caf\udce9.png"),
        (1, 2),
        {},
    ],
)
def test_what_is_possible(value):
    assert expected_of(value) is None
