"""The memory of LoRA steps: state of a LoRA alone, at the published sizes."""

import json
from pathlib import Path

import pytest
from doc_pages import DOCS

from slam_jax.recipes.memory import parts_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The scripts import each other as files of one folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.mark.slow
def test_only_the_lora_has_an_optimiser_and_an_average():
    """67.25 million weights, as the published LCM-LoRA of SD 1.5 has."""
    import memory_of_lora

    case = memory_of_lora.CASES["sd_lora"]
    family = memory_of_lora.family_of(case)
    lora, whole = (
        {name: here for name, (_, here) in parts_of(config, family).items()}
        for config in (
            memory_of_lora.config_of(recipe, case, kind)
            for recipe, kind in ((case.recipe, "lora"), (case.whole, "full"))
        )
    )
    assert lora["student"] == lora["EMA"] == lora["gradients"]
    assert lora["student"] / 4 == pytest.approx(67.25e6, rel=1e-4)
    assert lora["optimiser"] == pytest.approx(2 * lora["student"], rel=1e-6)
    assert whole["student"] / 4 == pytest.approx(859.52e6, rel=1e-4)
    assert lora["teacher (float32)"] == whole["student"] == 2 * whole["teacher (bfloat16)"]


def counted(name):
    """GiB: (sum, what comes and goes, what stays, what stays of a whole student); the report."""
    report = json.loads((ROOT / f"benchmarks/results/memory_{name}.json").read_text())
    parts = dict(report["bytes"])
    total, step = parts.pop("sum"), parts.pop("activations, copies")
    assert total == step + sum(parts.values())
    whole = report["bytes_of_whole_student"]["sum without activations"]
    return [n / 2**30 for n in (total, step, sum(parts.values()), whole)], report


def test_the_page_says_what_was_counted():
    (total, step, stays, whole), report = counted("sd_lora")
    words = " ".join((DOCS / "lora.md").read_text().split())
    assert total < 24
    assert f"one device needs {total:.1f} GiB: {stays:.1f} of weights" in words
    assert f"gradients, and {step:.1f} that come and go" in words
    assert f"whole student would be {whole:.1f} GiB" in words
    assert f"{report['flops_per_sample'] / 1e12:.1f} TFLOP for each example" in words


def test_the_page_says_what_was_counted_for_sdxl():
    (total, step, stays, whole), report = counted("sdxl_lora")
    words = " ".join((DOCS / "lora.md").read_text().split())
    assert report["source"] == "at least, counted" and (total + step) * 2**30 < 40e9
    assert (
        f"it is {total:.1f} GiB by a quick count: {stays:.1f} that stay and {step:.1f} that"
        in words
    )
    assert f"a whole student would have {whole:.1f} that stay" in words
    assert f"{report['flops_per_sample'] / 1e12:.0f} TFLOP for an example" in words
    assert f"If it is so for SDXL, the whole is {stays + 1.9 * step:.0f} GiB" in words
