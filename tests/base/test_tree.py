"""Where two trees differ."""

import pytest

from slam_jax.base.tree import MISSING, differences

TREE = {"a": {"b": 1, "c": [1, 2]}}


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"a": {"c": [1, 2], "b": 1}}, []),
        ({"a": {"b": 2, "c": [1, 3]}}, [("a.b", 1, 2), ("a.c", [1, 2], [1, 3])]),
        ({"a": {"c": [1, 2]}}, [("a.b", 1, MISSING)]),
        ({"d": None, **TREE}, [("d", MISSING, None)]),
        ({"a": 5}, [("a", TREE["a"], 5)]),
        (5, [("", TREE, 5)]),
    ],
)
def test_every_difference_has_its_path_and_both_values(other, expected):
    assert list(differences(TREE, other)) == expected


def test_leaves_are_compared_as_the_caller_says():
    assert not list(differences({"a": 1}, {"a": -1}, lambda a, b: abs(a) == abs(b)))
