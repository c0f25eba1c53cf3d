"""Each finding: data that it is found in, and data that it is not."""

from dataclasses import replace

import numpy as np
import pytest
from report_runs import config, rows

from slam_jax.method.lcm import Lcm
from slam_jax.method.slam_literal import SlamLiteral
from slam_jax.reporting import findings
from slam_jax.reporting.data import RunData, Strip, Strips


def test_rows_without_what_newer_ones_have():
    assert texts(findings.skipped_steps([{"step": 20}])) == []


def texts(found):
    return [finding.text for finding in found]


def test_a_run_that_goes_well_has_none(tmp_path):
    run = RunData(tmp_path, config(), {}, {}, rows(), (ladder(0.03, 0.04),))
    assert findings.findings(run) == []
    assert findings.findings(RunData(tmp_path, config(), {}, {})) == []


def test_all_of_them_at_once(tmp_path):
    bad = rows(
        loss_t3=lambda u: u,
        loss_gamma3=lambda u: 0.1,
        loss_gamma0=lambda u: 0.1 + 0.03 * np.sin(50 * u),
        grad_norm=lambda u: 7,
        rejected_examples=lambda u: 5,
        rmse_to_teacher_4=lambda u: 1 + u,
    )
    bad[-1]["skipped"] = 2
    run = RunData(tmp_path, config(), {}, {}, bad, (ladder(0.03, 0.14),))
    firsts = [text.split()[:2] for text in texts(findings.findings(run))]
    assert firsts == [
        *(["2", "steps"], ["5", "examples"], ["The", "loss"], ["Gamma", "has"]),
        *(["The", "gradient"], ["RMSE", "to"], ["Pictures", "saturate:"]),
    ]


@pytest.mark.parametrize(("count", "said"), [(0, []), (1, ["1 step was"]), (3, ["3 steps were"])])
def test_skipped_steps(count, said):
    found = rows()
    found[-1]["skipped"] = count
    assert [text[: text.index(" skip")] for text in texts(findings.skipped_steps(found))] == said


def test_rejected_examples():
    assert texts(findings.rejected_examples(rows(), 10)) == []
    found = rows(10)
    found[-1]["rejected_examples"] = 500  # of 10 rows x 20 steps x 10 examples, and themselves
    assert texts(findings.rejected_examples(found, 10)) == [
        "500 examples were rejected, 0.2 of those read."
    ]


@pytest.mark.parametrize(
    ("course", "grows"),
    [
        (lambda u: 0.4 * np.exp(-u), False),
        (lambda u: 0.4 + (u < 0.2), False),  # only the start is high
        (lambda u: 0.05 + min(u, 0.3), False),  # rises at the start, as the target moves off
        (lambda u: 0.4 + 0.06 * u, False),  # within a tenth
        (lambda u: 0.4 * np.exp(u), True),
    ],
)
def test_the_loss_of_the_last_t_bin_grows(course, grows):
    found = texts(findings.growing_loss_of_last_t_bin(rows(loss_t3=course)))
    assert len(found) == grows
    assert all("The loss of the last t bin grows" in text for text in found)


def test_a_loss_that_only_jumps_about_does_not_grow():
    """Its mean is 4.2 in the second quarter and 5.8 in the last."""
    high = {7, 9, 17, 19, 20}
    found = rows(loss_t3=lambda u: 9 if round(20 * u) in high else 1)
    assert texts(findings.growing_loss_of_last_t_bin(found)) == []
    few = rows(6, loss_t3=lambda u: u)
    assert texts(findings.growing_loss_of_last_t_bin(few)) == []


def test_gamma_without_effect():
    """Bins that are equal row by row, whatever the loss itself does; bins that are not."""
    wave = np.random.default_rng(2).standard_normal(21)
    columns = {
        "loss_gamma0": lambda u: np.exp(-u) * (1 + 0.01 * wave[int(u * 20)]),
        "loss_gamma3": lambda u: np.exp(-u),
    }
    (text,) = texts(findings.gamma_without_effect(rows(**columns)))
    assert text.startswith("Gamma has no effect")
    columns["loss_gamma3"] = lambda u: 1.1 * np.exp(-u)  # 10% more, in every row
    assert texts(findings.gamma_without_effect(rows(**columns))) == []
    # So noisy that a difference would not be seen: nothing can be said.
    columns["loss_gamma3"] = lambda u: np.exp(2 * wave[int(u * 20)])
    assert texts(findings.gamma_without_effect(rows(**columns))) == []
    one_bin = rows(loss_gamma0=None, loss_gamma1=None, loss_gamma2=None)
    assert texts(findings.gamma_without_effect(one_bin)) == []


def test_gamma_is_not_asked_for_where_it_is_one(tmp_path):
    equal = rows(
        **{f"loss_gamma{i}": lambda u, i=i: 0.1 + 0.001 * ((u * 20 + i) % 2) for i in (0, 3)}
    )
    of_slam = [config(method=dict(gamma=gamma)) for gamma in ("uniform", "one")]
    others = [replace(of_slam[0], method=method()) for method in (SlamLiteral, Lcm)]
    for chosen, count in zip([*of_slam, *others], (1, 0, 1, 0), strict=True):
        run = RunData(tmp_path, chosen, {}, {}, equal)
        assert len(texts(findings.findings(run))) == count


@pytest.mark.parametrize(("norm", "clipped"), [(0.9, False), (1.2, True)])
def test_clipped_gradients(norm, clipped):
    found = texts(findings.clipped_gradients(rows(grad_norm=lambda u: norm), 1.0))
    assert len(found) == clipped
    half = rows(grad_norm=lambda u: 1.2 if u > 0.5 else 0.5)
    assert texts(findings.clipped_gradients(half, 1.0)) == []


def test_a_metric_that_got_worse_says_where_it_was_best():
    measured = dict.fromkeys((0.25, 0.5, 0.75, 1.0), 0.2) | {0.5: 0.1}
    found = rows(rmse_to_teacher_4=lambda u: measured.get(u))
    (text,) = texts(findings.worse_metrics(found))
    assert text.startswith("RMSE to teacher in 4 steps got worse since step 200: ")
    measured[1.0] = 0.104  # no worse than noise
    assert texts(findings.worse_metrics(rows(rmse_to_teacher_4=measured.get))) == []


def test_a_metric_may_be_the_better_the_higher():
    def falling(u):
        return 0.9 - 0.5 * u

    assert texts(findings.worse_metrics(rows(rmse_to_teacher_1=falling))) == []
    (text,) = texts(findings.worse_metrics(rows(label_accuracy_1=falling)))
    assert "in 1 step got worse since step 20:" in text
    assert texts(findings.worse_metrics(rows(unknown_1=lambda u: u))) == []


def ladder(teacher, student):
    strips = [Strip(steps, b"", border) for steps, border in ((50, teacher), (1, 0), (4, student))]
    return Strips(400, ("a",), (8, 8), strips[0], tuple(strips[1:]))


@pytest.mark.parametrize(
    ("teacher", "student", "saturated"),
    [(0.03, 0.14, True), (0.03, 0.06, False), (0.4, 0.5, False), (0.2, 0.1, False)],
)
def test_saturated_pictures(teacher, student, saturated):
    found = texts(findings.saturated_pictures(ladder(teacher, student)))
    assert len(found) == saturated
    for text in found:
        assert text.endswith(
            "in 4 steps the share of pixels at the border is 14%, the teacher's 3%."
        )
