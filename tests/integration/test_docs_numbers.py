"""What pages say of bfloat16 and of TPUs is what was measured."""

import json

import jax
import numpy as np
from doc_pages import DOCS, ROOT

from slam_jax.models import functional
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig

GIB = 2**30


def trained_and_drawn(drawn_in, student, metric="fd_to_teacher"):
    """Students of the digits: steps 1, 2, 4, 8 x three seeds."""
    name = "precision_digits" + {"float32": "", "bfloat16": "_drawn_in_bfloat16"}[drawn_in]
    report = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    assert report["protocol"]["dtype"] == drawn_in
    last = max(row["passes"] for row in report["rows"])
    found = np.array(
        [
            [r["pictures"][metric] for r in report["rows"] if r["passes"] == last
             and (r["student"], r["steps"], r["times"]) == (student, n, "grid")]
            for n in (1, 2, 4, 8)
        ]
    )  # fmt: skip
    assert found.shape == (4, 3)
    return found


def test_what_bfloat16_costs_is_what_was_measured():
    words = " ".join((DOCS / "results.md").read_text().split())

    def more(drawn_in, student, metric="fd_to_teacher"):
        """Than trained in float32, in percent: the means."""
        ours, theirs = (trained_and_drawn(drawn_in, x, metric) for x in (student, "SLAM"))
        return 100 * (ours.mean(axis=1) / theirs.mean(axis=1) - 1)

    for drawn_in in ("float32", "bfloat16"):
        assert abs(more(drawn_in, "teacher bfloat16")).max() < 2
    for drawn_in, said in (
        ("float32", "{:.0f}% farther from the teacher in 1 step, {:.0f} to {:.0f}% nearer in 2"),
        ("bfloat16", "{:.0f}% farther in 1 step, with every seed again, and {:.0f} to {:.0f}%"),
    ):
        first, *others = more(drawn_in, "bfloat16")
        assert said.format(first, -max(others), -min(others)) in words
        ratio = trained_and_drawn(drawn_in, "bfloat16") / trained_and_drawn(drawn_in, "SLAM")
        assert (ratio[0] > 1).all() and (ratio[1:] < 1).all()

    def when_drawn_in_bfloat16(student):
        half, full = (trained_and_drawn(x, student)[0].mean() for x in ("bfloat16", "float32"))
        return 100 * (half / full - 1)

    assert f"float32 gets {when_drawn_in_bfloat16('SLAM'):.0f}% worse when it draws" in words
    assert abs(when_drawn_in_bfloat16("bfloat16")) < 1
    first, *others = more("bfloat16", "bfloat16", "fd_pixels")
    said = f"{first:.0f}% in 1 step and {min(others):.0f} to {max(others):.0f}% in 2 to 8, drawn in"
    assert said in words
    first, second, *_ = more("bfloat16", "bfloat16, target float32")
    assert 90 < first < 110 and f"twice as far in 1 step, {second:.0f}% farther in 2" in words


def test_what_is_said_of_published_sizes_on_tpus():
    results = ROOT / "benchmarks/results"
    words = " ".join((DOCS / "scaling.md").read_text().split())
    assert "```{include} ../benchmarks/results/tpus.md ```" in words
    steps = {
        name: json.loads((results / f"tpu_sd15_step_{name}.json").read_text())
        for name in ("v5e_2x4", "v5p_2x2x1")
    }
    unet = UNetConfig(cross_attention_dim=768, time_cond_proj_dim=256)
    shapes = jax.tree.leaves(functional.abstract_params(UNet2DConditionModel, unet))
    weights = 4 * sum(leaf.size for leaf in shapes)
    sums = {
        name: sum(n for kind, *_, n in step["traffic"] if kind in ("all-reduce", "reduce-scatter"))
        for name, step in steps.items()
    }
    ratios = {name: f"{total / weights:.2f}" for name, total in sums.items()}
    assert (
        f"are {ratios['v5e_2x4']} times the bytes of the float32 weights, once, on eight" in words
    )
    assert f"v5e, and {ratios['v5p_2x2x1']} times on four v5p." in words
    eight = steps["v5e_2x4"]
    gathered = sum(n for kind, *_, n in eight["traffic"] if kind == "all-gather")
    assert f"needs {eight['temporary'] / GIB:.2f} GiB of temporary arrays." in words
    assert f"gathered twice, {gathered / 1e9:.2f} GB in all" in words
    scattered = sum(n for kind, *_, n in eight["traffic"] if kind == "reduce-scatter")
    assert 0.75 < scattered / sums["v5e_2x4"] < 0.85 and "Four fifths of them are" in words
    others = [n for kind, n in eight["products"].items() if kind != "bf16 x bf16"]
    assert f"between bfloat16, but for {sum(others)} of attention" in words


def test_what_is_said_of_attention_on_a_cpu():
    words = " ".join((DOCS / "performance.md").read_text().split())
    ratios = {"auto": [], "xla": [], "others": []}
    for shapes in ("tiny", "sd15"):
        path = ROOT / f"benchmarks/results/attention_{shapes}_float32_cpu.json"
        for row in json.loads(path.read_text())["rows"]:
            seconds = {
                name: x["median_s"]
                for name, x in row["found"].items()
                if "cudnn" != name != "splash"
            }
            large = row["queries"] == row["keys"] == 4096
            for name in ("auto", "xla") if large else ("auto",):
                ratio = seconds[name] / seconds["torch sdpa"]
                ratios[name if large else "others"].append(ratio)
    low, high, *xla = (f(ratios[name]) for name in ("auto", "xla") for f in (min, max))
    assert f"on a CPU: {low:.1f} to {high:.1f} times for 4,096 tokens" in words
    assert f"alone takes {xla[0]:.1f} to {xla[1]:.1f} times as long" in words
    assert f"up to {max(ratios['others']):.1f} times for others" in words


def test_what_training_gains_is_what_was_measured():
    words = " ".join((DOCS / "results.md").read_text().split())

    def gains(task, metric):
        """How much farther students are than before training, in 1, 2, 4 and 8 steps."""
        path = ROOT / f"benchmarks/results/untrained_{task}.json"
        found = {(r["model"], r["steps"]): r[metric] for r in json.loads(path.read_text())["rows"]}
        return [found["student", n] / found["student, untrained", n] for n in (1, 2, 4, 8)]

    one, *more = gains("digits", "fd_to_teacher")
    assert 2 < 1 / one < 2.2 and 1 / max(more) > 2.8 and 1 / min(more) < 7.5
    assert "3 to 7 times as near to the teacher in 2 to 8 steps, twice in 1" in words
    farther = [f"{100 * ratio - 100:.0f}" for ratio in gains("emoji", "rmse_to_teacher")]
    assert f"is {min(farther)} to {max(farther)}% farther by RMSE than before" in words
    one, two, four, eight = (
        100 * ratio - 100 for ratio in gains("emoji", "fd_efficientnet_to_teacher")
    )
    assert f"it is {one:.0f}% farther in 1 step, and {-four:.0f} and {-eight:.0f}% nearer" in words
    assert abs(two) < 1
