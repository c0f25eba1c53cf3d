"""Which curves are drawn of which rows."""

import json

import numpy as np
from report_runs import config, make_workdir, rows

from slam_jax.reporting.charts import MOST_POINTS, charts, points
from slam_jax.reporting.data import RunData


def of(tmp_path, found, **more):
    return charts(RunData(tmp_path, config(), {}, {}, found, **more))


def test_every_metric_is_in_one_chart(tmp_path):
    """Those of a method that nobody knows, too."""
    found = rows(rmse_to_teacher_1=lambda u: u, rmse_to_teacher_4=lambda u: u, mine=lambda u: u)
    ladders, curves = of(tmp_path, found)
    assert [(chart.title, len(chart.curves)) for chart in ladders] == [("RMSE to teacher", 2)]
    assert [(chart.title, len(chart.curves)) for chart in curves] == [
        ("Loss", 1),
        ("Loss by t, as a share of the schedule", 4),
        ("Loss by gamma", 4),
        ("Gradient norm", 2),
        ("Learning rate", 1),
        ("Samples per second", 1),
        ("mine", 1),
    ]
    by_t = curves[1]
    assert [curve.label for curve in by_t.curves] == [
        *("0 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "0.75 to 1")
    ]
    assert by_t.curves[2].points[0] == (20, float(f"{found[0]['loss_t2']:.6g}"))
    norm, clip = curves[3].curves
    assert not norm.reference and clip.reference and {y for _, y in clip.points} == {1.0}


def test_the_teacher_is_a_line_where_it_has_a_number(tmp_path):
    found = rows(rmse_to_teacher_1=lambda u: u, rmse_to_teacher_4=lambda u: u)
    ((chart,), _) = of(tmp_path, found, teacher_metrics={"rmse_to_teacher_4": 0.25})
    assert [curve.label for curve in chart.curves] == [
        *("student, 1 step", "student, 4 steps", "teacher, 4 steps")
    ]
    student, teacher = chart.curves[1:]
    assert teacher.points == [(x, 0.25) for x, _ in student.points]
    assert teacher.reference and teacher.color == student.color


def test_many_points_become_means_and_what_is_not_finite_a_gap():
    many = [{"step": i, "x": float(i % 2)} for i in range(10 * MOST_POINTS)]
    found = points(many, "x")
    assert len(found) == MOST_POINTS and {y for _, y in found} == {0.5}
    assert found[0][0] == 4.5
    gap = [{"step": 1, "x": np.nan}, {"step": 2}, {"step": 3, "x": 1.0}]
    assert points(gap, "x") == [(1, None), (3, 1.0)]
    json.dumps(points(gap, "x"), allow_nan=False)


def test_a_run_without_rows_has_no_curves(tmp_path):
    make_workdir(tmp_path)
    assert of(tmp_path, ()) == ([], [])
