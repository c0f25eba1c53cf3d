"""What docs/results.md says of bfloat16."""

import json

import numpy as np
from doc_pages import DOCS, ROOT


def test_what_bfloat16_costs_is_what_was_measured():
    report = json.loads((ROOT / "benchmarks/results/precision_digits.json").read_text())
    words = " ".join((DOCS / "results.md").read_text().split())
    last = max(row["passes"] for row in report["rows"])

    def more(student, metric="fd_to_teacher"):
        """Than float32, in percent: the means in 1, 2, 4 and 8 steps; and those of each seed."""
        seeds = np.array(
            [
                [
                    [r["pictures"][metric] for r in report["rows"] if r["passes"] == last
                     and (r["student"], r["steps"], r["times"]) == (name, n, "grid")]
                    for n in (1, 2, 4, 8)
                ]
                for name in (student, "SLAM")
            ]
        )  # fmt: skip
        assert seeds.shape == (2, 4, 3)
        ours, theirs = seeds.mean(axis=2)
        return 100 * (ours / theirs - 1), seeds[0] / seeds[1] - 1

    means, seeds = more("bfloat16")
    first, *others = means
    low, high = -max(others), -min(others)
    assert (
        f"{first:.0f}% farther from the teacher in 1 step, {low:.0f} to {high:.0f}% nearer" in words
    )
    assert (seeds[0] > 0).all() and (seeds[1:] < 0).all()
    first, *others = more("bfloat16", "fd_pixels")[0]
    said = f"it is {first:.0f}% farther in 1 step and {min(others):.0f} to {max(others):.0f}% in"
    assert said in words
    first, second, *_ = more("bfloat16, target float32")[0]
    assert first > 100 and f"more than twice as far in 1 step, {second:.0f}% farther in 2" in words
    assert abs(more("teacher bfloat16")[0]).max() < 1 and "within 1% of float32" in words
