"""What stands in the README and in docs/: links lead somewhere, tables show what was measured, and
every option is listed."""

import dataclasses
import json
import re

import numpy as np
import pytest
from doc_pages import DOCS, NAMES, ROOT, blocks

from slam_jax.config.options import Config
from slam_jax.config.pretraining import Pretraining
from slam_jax.method.registry import METHODS


def test_every_page_is_tested():
    """Pages without commands of their own are named here."""
    others = {"index", "method", "options", "api", "measurements", "contributing", "changelog"}
    assert {path.stem for path in DOCS.glob("*.md")} == {*NAMES, *others}
    for name in others:
        page = DOCS / f"{name}.md"
        assert blocks(page, "bash") == blocks(page, "python") == []


def test_the_readme_fits_a_screen_or_two():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(page):
    """Links to pages, files and included text; what Sphinx generates is not there yet."""
    text = page.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^```{include} (\S+)", text, re.M)
    for link in links:
        path, _, anchor = link.partition("#")
        if link.startswith("https://") or path.startswith("generated/"):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)", target.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("kind", [Config, Pretraining])
def test_options_page_has_every_option_with_its_default(monkeypatch, kind):
    monkeypatch.syspath_prepend(str(DOCS))
    import options_page

    text = options_page.markdown(kind())
    groups = dict(re.findall(r"^## `([\w. ]+)`\n(.*?)(?=^## |\Z)", text, re.M | re.S))

    def compare(options, path):
        for name, value in options.items():
            if path == "config" and name == "method":
                for method, options_of in METHODS.items():
                    compare(dataclasses.asdict(options_of()), f"config.method of {method}")
            elif hasattr(value, "items") and value:
                compare(value, f"{path}.{name}")
            else:
                shown = f'"{value}"' if isinstance(value, str) else repr(value)
                rows = re.findall(rf"^\| `{name}`.*", groups[path], re.M)
                assert len(rows) == 1 and f"| `{shown}` |" in rows[0], (path, name)

    compare(dataclasses.asdict(kind()), "config")
    assert text.count("\n| `") == sum(group.count("\n| `") for group in groups.values())


def test_what_is_shown_was_measured():
    """Tables of results come from the files that the benchmarks wrote; numbers in the text are
    those of their JSON."""
    results = ROOT / "benchmarks/results"
    pages = {name: (DOCS / f"{name}.md").read_text() for name in (*NAMES, "measurements")}
    for page, name in (
        ("data", "data"),
        ("performance", "fast"),
        ("measurements", "speed"),
        ("measurements", "switches"),
        ("results", "slam_vs_lcm"),
    ):
        assert "```{include} ../benchmarks/results/" + f"{name}.md\n" in pages[page]
    compared = json.loads((results / "slam_vs_lcm.json").read_text())["runs"]

    def of(method, seed, metric):
        rows = compared[method][seed]["results"]
        return np.array([row[metric] for row in rows if row["model"] == "student"])

    for metric in ("fd_pixels", "fd_to_teacher"):
        three = np.mean([of("LCM", seed, metric) for seed in range(3)], axis=0)
        for method, seeds, numbers in (
            ("LCM", "0, 1, 2", three),
            ("SLAM", "0", of("SLAM", 0, metric)),
        ):
            digits = 2 if metric == "fd_pixels" else 3
            cells = [f"{numbers[0]:.2f}", *(f"{n:.{digits}f}" for n in numbers[1:])]
            start_of = rf"\| {method} \| 1,500 \| \d+k \| {seeds} \| "
            text = pages["results"].replace("**", "")
            assert re.search(start_of + r" \| ".join(map(re.escape, cells)), text), (metric, method)
    words = " ".join(pages["results"].split())
    gains = [
        (of("SLAM", seed, "fd_to_teacher") / of("LCM", seed, "fd_to_teacher") - 1) * 100
        for seed in range(3)
    ]
    mean, spread = np.mean(gains, axis=0), np.std(gains, axis=0, ddof=1)
    said = [f"{abs(m):.1f} ± {s:.1f}%" for m, s in zip(mean, spread, strict=True)]
    assert mean[0] > 0 and all(mean[1:] < 0)
    assert f"{said[0]} worse than LCM's in 1 step" in words
    assert f"{said[1]}, {said[2]} and {said[3]} better in 2, 4 and 8 steps" in words


def test_the_page_of_the_emoji_shows_the_report_of_their_demo():
    report = json.loads((ROOT / "benchmarks/results/emoji.json").read_text())
    page = (DOCS / "emoji.md").read_text()
    for row in report["results"]:
        cells = f"| {row['model']} | {row['steps']} | {row['rmse_to_teacher']:.3f} |"
        assert cells in page or row["steps"] == 50
    assert {row["steps"] for row in report["results"]} == {50, 8, 4, 2, 1}


def test_the_readme_shows_the_report_of_the_demo():
    report = json.loads((ROOT / "benchmarks/results/digits.json").read_text())
    readme, names = (ROOT / "README.md").read_text(), ("fd_pixels", "fd_features", "label_accuracy")
    for row in report["results"]:
        numbers = [f"{row[name]:.3f}" for name in (*names, "fd_to_teacher")]
        assert f"| {row['model']} | {row['steps']} | {' | '.join(numbers)} |" in readme
