"""The facts of a report: what its numbers are of, and durations."""

import pytest
from report_runs import make_workdir

from slam_jax.reporting import facts
from slam_jax.reporting.data import read_run_data
from slam_jax.reporting.facts import duration


def protocol(run_folder, **evaluation):
    run = read_run_data(make_workdir(run_folder, evaluation=evaluation))
    return {fact.name: (fact.value, fact.note) for fact in facts.protocol(run)}


def test_the_protocol_tells_metrics_of_pixels_from_those_of_networks(tmp_path):
    chosen = dict(
        samples=500,
        metrics=("rmse_to_teacher", "fid_to_teacher", "clip_score"),
        weights=("inception=a/b=c.pth",),
    )
    for seen, count in ((4096, "4,096"), (0, "3")):
        found = protocol(tmp_path / f"{seen}", pictures=seen, **chosen)
        said = "in the table of 500 pictures, of noise that no ladder has"
        assert found["metrics of pixels"] == ("RMSE to teacher", said)
        said = f"of {count} pictures, of the same noise in ladders and table"
        assert found["metrics of networks"] == ("FID to teacher, CLIP score", said)
        assert found["weights of inception"] == ("a/b=c.pth", "")
        assert found["weights of clip_b32"] == ("as published", "")


def test_the_protocol_of_metrics_that_are_not_chosen(tmp_path):
    found = protocol(tmp_path / "run", prompts=tuple("abcdefghijklmnopqrstuvwxyz"))
    names, note = found["metrics of pixels"]
    assert names.startswith("FD pixels, ") and "FID" not in names
    assert note.startswith("in the table of 20 pictures")  # a ladder's row has no more
    assert not [name for name in found if "network" in name or "weights" in name]
    assert "metrics of pixels" not in protocol(tmp_path / "other", metrics=("clip_score",))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.05, "0.05 s"), (59, "59 s"), (59.94, "59.9 s"), (59.97, "1 min 0 s")),
        *((119.7, "2 min 0 s"), (200, "3 min 20 s"), (599.4, "9 min 59 s"), (599.6, "10 min")),
        *((1023, "17 min"), (3599, "1 h 0 min"), (7260, "2 h 1 min")),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
