"""What is read of a workdir, and which ladders a page gets."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from report_runs import make_workdir, pictures, rows

from slam_jax.base.errors import InputError
from slam_jax.drawing.strips import FEW, SIDE, save_strips
from slam_jax.reporting.data import Strip, Strips, read_run_data, thinned


def opened(strip):
    with Image.open(io.BytesIO(strip.image)) as picture:
        return np.asarray(picture)


def test_a_strip_has_the_pictures_of_its_row(tmp_path):
    images = pictures(size=(8, 6))
    images[0, :4] = -1  # half of the first of three
    save_strips(tmp_path / "step_000100", {("teacher", 9): images}, ("a", "b", "c"), 20)
    written = json.loads((tmp_path / "step_000100/rows.json").read_text())
    assert written["prompts"] == ["a", "b", "c"] and written["size"] == [6, 8]
    assert written["rows"][0]["at_border"] == pytest.approx(1 / 6)
    with Image.open(tmp_path / "step_000100/teacher_9.webp") as picture:
        shown = np.asarray(picture)
    expected = np.round((images + 1) * 127.5).astype(np.uint8)
    for i in range(3):
        for channel in range(3):
            np.testing.assert_array_equal(shown[:, 6 * i : 6 * i + 6, channel], expected[i, ..., 0])


def test_large_pictures_become_small_ones(tmp_path):
    grey = np.linspace(-1, 1, 100)[:, None, None, None] * np.ones((100, 400, 200, 3), np.float32)
    save_strips(tmp_path / "x", {("student", 4): grey}, tuple("p" * 100), 20)
    written = json.loads((tmp_path / "x/rows.json").read_text())
    assert written["size"] == [SIDE // 2, SIDE] and len(written["prompts"]) == FEW
    with Image.open(tmp_path / "x/student_4.webp") as picture:
        shown = np.asarray(picture).astype(int)
    assert shown.shape == (SIDE, FEW * SIDE // 2, 3)
    middles = shown[SIDE // 2, SIDE // 4 :: SIDE // 2, 0]
    np.testing.assert_allclose(middles, 127.5 * (grey[:FEW, 0, 0, 0] + 1), atol=3)


def test_a_run_is_read_as_far_as_it_is(tmp_path):
    run = read_run_data(make_workdir(tmp_path / "run"))
    assert [one.step for one in run.ladders] == [100, 200, 300, 400]
    assert run.step == 400 and len(run.rows) == 20 and run.summary is None
    assert [strip.steps for strip in run.ladders[0].student] == [1, 4]
    assert (
        run.ladders[0].prompts == ("a", "b", "c") and opened(run.ladders[0].teacher).shape[1] == 24
    )
    (tmp_path / "run/teacher_metrics.json").write_text('{"metrics": {"rmse_to_teacher_4": 0.3}}')
    assert read_run_data(tmp_path / "run").teacher_metrics == {"rmse_to_teacher_4": 0.3}


def test_a_run_that_has_only_begun_and_one_from_before_there_were_strips(tmp_path):
    run = read_run_data(make_workdir(tmp_path / "old", ladders=()))
    assert run.ladders == () and run.rows
    (tmp_path / "old/metrics.jsonl").unlink()
    run = read_run_data(tmp_path / "old")
    assert run.rows == () and run.step == 0


def test_a_row_that_is_being_written_is_left_out_and_a_damaged_one_named(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    path = workdir / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 420, "lo')
    assert read_run_data(workdir).step == 400
    for damaged in (b'{"step": 20, "lo', b"[1]", b"7", b"{}", b'{"step": "1"}', b"\xff\xfe{"):
        for before, after in (("", whole), (whole, "")):
            path.write_bytes(before.encode() + damaged + b"\n" + after.encode())
            with pytest.raises(InputError, match=r"metrics.jsonl: line (1|21) is damaged") as error:
                read_run_data(workdir)
            assert "\n" not in str(error.value)


TEACHER_ALONE = {"model": "teacher", "steps": 50, "file": "teacher_50.webp", "at_border": 0.1}


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"prompts": [], "size": [1], "rows": []}',
        json.dumps({"prompts": ["a"], "size": [8, 8], "rows": [TEACHER_ALONE]}),
    ],
)
def test_damaged_rows_of_a_ladder_are_named(tmp_path, text):
    workdir = make_workdir(tmp_path / "run")
    (workdir / "samples/step_000400/rows.json").write_text(text)
    with pytest.raises(InputError, match=r"step_000400/rows.json: damaged"):
        read_run_data(workdir)


def test_the_folder_of_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config.json: cannot be read .* give the --workdir"):
        read_run_data(tmp_path)


def test_ladders_of_steps_that_were_taken_back_are_left_out(tmp_path):
    """A run was killed at step 400 and went on from 200."""
    workdir = make_workdir(tmp_path / "run")
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:10]))
    assert [one.step for one in read_run_data(workdir).ladders] == [100, 200]


def test_the_ladder_at_the_end_takes_the_place_of_that_of_the_last_step(tmp_path):
    workdir = make_workdir(tmp_path / "run", ladders=(200, 400))
    drawn = {("teacher", 50): pictures(0.5), ("student", 1): pictures(), ("student", 4): pictures()}
    save_strips(workdir / "samples/ladder", drawn, ("a", "b", "c"), 20)
    found = read_run_data(workdir).ladders
    assert [one.step for one in found] == [200, 400]
    assert found[-1].student[0].image == found[-1].student[1].image


@pytest.mark.parametrize(("patience", "steps"), [(3, [100, 200]), (4, [100])])
def test_the_last_ladder_of_a_run_that_ended_early(tmp_path, patience, steps):
    """Its loss became lower for the last time in the seventh of ten rows. With more patience the
    run is not over, and "ladder" is of an earlier end."""
    best = dict(patience=patience, best_metric="loss")
    workdir = make_workdir(tmp_path / "run", ladders=(100,), training=best)
    losses = [7, 6, 5, 4, 3, 2, 1, 1, 2, 3]
    found = [row | {"loss": loss} for row, loss in zip(rows(), losses, strict=False)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    drawn = {("teacher", 50): pictures(0.5), ("student", 1): pictures(), ("student", 4): pictures()}
    save_strips(workdir / "samples/ladder", drawn, ("a", "b", "c"), 20)
    assert [one.step for one in read_run_data(workdir).ladders] == steps


def test_ladders_of_other_prompts_are_left_out(tmp_path):
    """Prompts and steps may change when a run goes on: sliders need what all ladders have."""
    workdir = make_workdir(tmp_path / "run")
    drawn = {("teacher", 50): pictures(0.5), ("student", 1): pictures(), ("student", 4): pictures()}
    save_strips(workdir / "samples/step_000100", drawn, ("x", "b", "c"), 20)
    drawn["student", 8] = pictures()
    save_strips(workdir / "samples/step_000200", drawn, ("a", "b", "c"), 20)
    assert [one.step for one in read_run_data(workdir).ladders] == [300, 400]


def strips(step, size):
    return Strips(step, (), (1, 1), Strip(9, b"t" * size, 0), (Strip(1, b"s" * size, 0),))


@pytest.mark.parametrize(
    ("count", "most", "most_bytes", "steps"),
    [
        (0, 5, 1000, []),
        (1, 5, 1000, [0]),
        (5, 5, 1000, [0, 1, 2, 3, 4]),
        (9, 5, 1000, [0, 2, 4, 6, 8]),
        (9, 5, 60, [0, 4, 8]),  # of 20 bytes each
        (9, 5, 0, [0, 8]),
    ],
)
def test_thinned(count, most, most_bytes, steps):
    ladders = [strips(i, 10) for i in range(count)]
    assert [one.step for one in thinned(ladders, most, most_bytes)] == steps
