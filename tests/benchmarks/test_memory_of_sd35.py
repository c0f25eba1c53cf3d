"""The memory of Stable Diffusion 3.5 medium as docs/flow.md has it, and as a plan counts it."""

import json
from pathlib import Path

import pytest
from doc_pages import DOCS

from slam_jax.models import functional
from slam_jax.recipes.memory import parts_of

ROOT = Path(__file__).parents[2]
GB = 2**30


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The scripts import each other as files of one folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def needs(name):
    """(sum, what comes and goes, what stays, the report)."""
    report = json.loads((ROOT / f"benchmarks/results/memory_{name}.json").read_text())
    parts = dict(report["bytes"])
    total, step = parts.pop("sum"), parts.pop("activations, copies")
    assert total == step + sum(parts.values()) and not any("text" in part for part in parts)
    assert (report["rows"], report["remat"]) == (1, "full")
    return total, step, sum(parts.values()), report


def test_the_page_says_what_was_counted():
    words = " ".join((DOCS / "flow.md").read_text().split())
    (whole, come, stay, report), (lora, its_come, its_stay, its) = map(needs, ("sd35", "sd35_lora"))
    assert whole < 80 * GB and lora < 80 * GB
    for total, step, stays in ((whole, come, stay), (lora, its_come, its_stay)):
        numbers = f"| {stays / GB:.1f} | {step / GB:.1f} | {total / GB:.1f} |"
        assert numbers in words, numbers
    assert report["source"] == its["source"] == "at least, counted"
    assert f"{report['flops_per_sample'] / 1e12:.0f} TFLOP" in words


@pytest.mark.nightly  # traces the published sizes
@pytest.mark.parametrize("name", ["sd35", "sd35_lora"])
def test_what_stays_is_counted_still(name):
    """2.47 billion numbers of the transformer, 226 million of which are no weights; T5's 4.8."""
    import memory_of_lora
    import shapes_of_sd3

    case, (*_, report) = memory_of_lora.CASES[name], needs(name)
    family = memory_of_lora.family_of(case)
    config = memory_of_lora.config_of(case.recipe, case, case.kind)
    found = {part: here for part, (_, here) in parts_of(config, family).items()}
    assert found == {part: report["bytes"][part] for part in found}
    pipeline = family.pipeline
    network = functional.count_params(pipeline.abstract_params(pipeline.network))
    places = 384 * 384 * 1536
    assert network / 1e9 == pytest.approx(2.47, abs=5e-3)
    if name == "sd35":
        assert found["student"] == found["EMA"] == 4 * (network - places)
        assert found["teacher (bfloat16)"] == 2 * (network - places) + 4 * places
    module, t5 = pipeline.around["text_encoder_3"]
    assert t5 == shapes_of_sd3.T5_XXL
    weights = functional.count_params(functional.abstract_params(module, t5))
    assert weights / 1e9 == pytest.approx(4.76, abs=5e-3)
