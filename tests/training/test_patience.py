"""Early stopping: after so many measurements, none of which is the lowest; also of a run that goes
on."""

import pytest

from slam_jax.training.patience import Patience


def rows(*values):
    return [{} if value is None else {"fid": value} for value in values]


@pytest.mark.parametrize(
    ("limit", "values", "over"),
    [
        (2, (3, 2, 2.5, 2), 3),  # an equal one is not lower
        (2, (3, None, 2, None, 4, None, 1, 1, 5), 8),  # rows without it do not count
        (3, (1, 2, 3), None),
        (0, (1, 2, 3, 4, 5), None),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_it_is_over_after_so_many_without_a_lower_one(limit, values, over, before):
    """Whether the rows were measured in this start of the run or in one before."""
    patience = Patience(limit, "fid", rows(*values[:before]))
    answers = [patience.over(row) for row in rows(*values[before:])]
    assert (answers.index(True) + before if any(answers) else None) == over
    assert patience.is_over == (over is not None)


def test_a_run_that_was_over_stays_over():
    assert Patience(2, "fid", rows(1, 2, 3)).is_over
    assert not Patience(3, "fid", rows(1, 2, 3)).is_over
    assert not Patience(2, "loss", rows(1, 2, 3)).is_over
