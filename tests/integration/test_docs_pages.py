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
        ("results", "methods_digits"),
        ("results", "methods_digits_w0"),
        ("results", "methods_emoji"),
        ("results", "methods_emoji_lora"),
        ("results", "methods_emoji_published"),
        ("results", "precision_digits"),
    ):
        assert "```{include} ../benchmarks/results/" + f"{name}.md\n" in pages[page]
    report = json.loads((results / "methods_digits.json").read_text())
    words = " ".join(pages["results"].split())

    def means(student, passes, metric="fd_to_teacher"):
        """In 1, 2, 4 and 8 steps, over the seeds."""
        rows = [r for r in report["rows"] if r["student"] == student and r["passes"] == passes]
        by_steps = {n: [r for r in rows if r["steps"] == n] for n in (1, 2, 4, 8)}
        assert {len(found) for found in by_steps.values()} == {5}
        return [np.mean([r["pictures"][metric] for r in found]) for found in by_steps.values()]

    for student, passes in (("LCM", 288_000), ("SLAM", 576_000)):
        cells = " | ".join(f"{number:.3f}" for number in means(student, passes))
        assert f"| {student} | {passes // 1000} | {cells} |" in words
    early, late = (means("SLAM", n, "fd_pixels")[2] for n in (144_000, 864_000))
    teacher = report["teacher"][0]["pictures"]["fd_pixels"]
    said = f"FD pixels of {early:.2f} in 4 steps, at the end {late:.2f}; the teacher itself is at"
    assert f"{said} {teacher:.2f}." in words
    ends = {name: means(name, 864_000) for name in ("SLAM", "LCM", "PCM, 4 phases")}
    assert ends["SLAM"][0] > ends["LCM"][0]
    assert all(a < b for a, b in zip(ends["SLAM"][1:], ends["LCM"][1:], strict=True))
    assert max(ends["PCM, 4 phases"][2:]) < min(ends["SLAM"][2:] + ends["LCM"][2:]) / 2


def test_between_the_times_of_the_grid_the_page_says_what_was_measured():
    report = json.loads((ROOT / "benchmarks/results/methods_digits_w0.json").read_text())
    words = " ".join((DOCS / "results.md").read_text().split())

    def curve(student, times, steps):
        """Means over the seeds, checkpoint by checkpoint."""
        rows = [r for r in report["rows"] if r["student"] == student and r["times"] == times]
        passes = sorted({row["passes"] for row in rows})
        found = [[r for r in rows if (r["steps"], r["passes"]) == (steps, n)] for n in passes]
        assert [len(rows) for rows in found] == [5, 5, 5]
        return [np.mean([r["pictures"]["fd_to_teacher"] for r in rows]) for rows in found]

    def written(values):
        *most, last = (f"{value:.3f}" for value in values)
        return f"{', '.join(most)} and {last}"

    steps = (1, 2, 4, 8)
    middle = [curve("LCM", "grid", n)[1] for n in steps]
    assert f"they are at {written(middle)} in 1, 2, 4 and 8 steps" in words
    between, grid = (curve("LCM", times, 2) for times in ("between", "grid"))
    assert f"its distance is {written(between)} after" in words
    assert f"on its grid it is {written(grid)}." in words
    best = [min(curve("LCM", "between", n)) for n in steps]
    ours = [curve("SLAM", "between", n)[-1] for n in steps]
    assert f"has {written(best)}; SLAM's last one {written(ours)}." in words
    for n in steps:
        for times in ("grid", "between"):
            pairs = zip(curve("SLAM", times, n), curve("LCM", times, n), strict=True)
            nearer = [ours < theirs for ours, theirs in pairs]
            assert nearer[-1] == (times == "between" or n > 1)


def test_the_emoji_of_three_methods_are_as_the_page_says():
    report = json.loads((ROOT / "benchmarks/results/methods_emoji.json").read_text())
    words = " ".join((DOCS / "results.md").read_text().split())
    last = max(row["training_steps"] for row in report["rows"] if row["student"] == "LCM")
    assert f"({last} steps of 32 pictures)" in words

    def mean(student, steps, metric="fd_efficientnet"):
        rows = [r for r in report["rows"] if (r["student"], r["steps"]) == (student, steps)]
        found = [r["captions"][metric] for r in rows if "captions" in r]
        assert len(found) == 4
        return np.mean(found)

    (teacher,) = (r for r in report["teacher"] if r["steps"] == 50 and not r["other_noise"])
    four, two, one = ([mean(name, n) for name in ("SLAM", "LCM")] for n in (4, 2, 1))
    said = (
        f"{four[0]:.1f} (SLAM) and {four[1]:.1f} (LCM) in 4 steps and {two[0]:.1f} and "
        f"{two[1]:.1f} in 2, where the teacher in 50 steps has "
        f"{teacher['captions']['fd_efficientnet']:.1f}. In 1 step they have {one[0]:.1f} and "
        f"{one[1]:.1f}."
    )
    assert said in words
    (other,) = (r for r in report["teacher"] if r["other_noise"])
    assert f"an RMSE of only {other['captions']['rmse_to_teacher']:.3f}" in " ".join(
        (DOCS / "emoji.md").read_text().split()
    )
    to_teacher = "fd_efficientnet_to_teacher"
    farther = [mean("SLAM", n, to_teacher) / mean("LCM", n, to_teacher) - 1 for n in (1, 2, 4, 8)]
    assert [round(100 * least) for least in (min(farther), max(farther))] == [1, 10]


def test_the_emoji_of_the_published_method_are_as_the_page_says():
    report = json.loads((ROOT / "benchmarks/results/methods_emoji_published.json").read_text())
    found = {}
    for row in report["rows"]:
        for metric, value in row.get("captions", {}).items():
            found.setdefault((metric, row["student"], row["steps"]), []).append(value)
    assert {len(values) for values in found.values()} == {3}
    for metric in ("rmse_to_teacher", "fd_colours_to_teacher", "fd_efficientnet_to_teacher"):
        for steps in (1, 2, 4, 8):
            ours, published = (found[metric, s, steps] for s in ("SLAM", "SLAM, published"))
            assert max(ours) < min(published), (metric, steps)
    said = []
    for steps in (1, 4):
        names = "SLAM, published", "SLAM"
        means = (np.mean(found["fd_efficientnet_to_teacher", s, steps]) for s in names)
        said.append("{:.1f} against {:.1f} in {}".format(*means, steps))
    words = " ".join((DOCS / "results.md").read_text().split())
    assert f"{said[0]} step and {said[1]} by EfficientNet's features" in words


def test_the_emoji_of_loras_are_as_the_page_says():
    report = json.loads((ROOT / "benchmarks/results/methods_emoji_lora.json").read_text())
    words = " ".join((DOCS / "results.md").read_text().split())

    def means(metric):
        """In 1, 2, 4 and 8 steps, over three seeds, of the whole student and the LoRAs."""
        found = {}
        for row in report["rows"]:
            if "captions" in row:
                found.setdefault((row["student"], row["steps"]), []).append(row["captions"][metric])
        assert {len(values) for values in found.values()} == {3}
        names = ("SLAM", "LoRA, rank 8", "LoRA, rank 64")
        return [[np.mean(found[name, n]) for n in (1, 2, 4, 8)] for name in names]

    data, teacher = means("fd_efficientnet"), means("fd_efficientnet_to_teacher")
    said = (
        f"is {data[1][2]:.1f} to the data and {teacher[1][2]:.1f} to the teacher, where the whole "
        f"student has {data[0][2]:.1f} and {teacher[0][2]:.1f};"
    )
    assert said in words
    whole, rank_8, rank_64 = means("fd_colours_to_teacher")
    assert all(np.array(whole[1:]) < rank_8[1:]) and all(np.array(whole[1:]) < rank_64[1:])
    assert np.allclose(data[1], data[2], rtol=0.01) and np.allclose(
        teacher[1], teacher[2], rtol=0.02
    )


def test_the_step_on_a_gpu_is_as_the_pages_say():
    report = json.loads((ROOT / "benchmarks/results/h200.json").read_text())
    page, readme = (DOCS / "performance.md").read_text(), (ROOT / "README.md").read_text()
    rates = []
    for name, shown in (("ours", "slam_jax"), ("tuned", "torch: tuned step, eager")):
        found = report["train_step"][name]
        seconds = np.median(found["seconds_of_10_steps"]) / 10
        rates.append(report["batch"] / seconds)
        row = f"| {shown} | {rates[-1]:.1f} | {seconds:.3f} | {found['peak_memory_gb']:.1f} GB |"
        assert row in page
    ratio = f"{rates[0] / rates[1]:.2f}x"
    assert f"**That is {ratio}**" in page and f"trains {ratio} as fast" in readme
    flops = float(re.search(r"\| ([\d.]+) TF a sample", page)[1])
    assert f"and {rates[0] * flops / 989:.0%} of the data sheet's arithmetic" in page


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


def test_the_emoji_of_flow_matching_are_as_the_pages_say():
    report = json.loads((ROOT / "benchmarks/results/methods_emoji_flow.json").read_text())
    words = " ".join((DOCS / "results.md").read_text().split())

    def mean(student, steps, metric="fd_efficientnet"):
        rows = [r for r in report["rows"] if (r["student"], r["steps"]) == (student, steps)]
        found = [r["captions"][metric] for r in rows if "captions" in r]
        assert len(found) == 2
        return np.mean(found)

    (teacher,) = (r["captions"] for r in report["teacher"] if r["steps"] == 50)
    four, two, one = ([mean(name, n) for name in ("SLAM", "LCM")] for n in (4, 2, 1))
    said = (
        f"{four[0]:.1f} (SLAM) and {four[1]:.1f} (LCM) in 4 steps and {two[0]:.1f} and "
        f"{two[1]:.1f} in 2, where the teacher in 50 has {teacher['fd_efficientnet']:.1f}. "
        f"In 1 step they have {one[0]:.1f} and {one[1]:.1f}."
    )
    assert said in words
    to_teacher = "fd_efficientnet_to_teacher"
    farther = [mean("SLAM", n, to_teacher) / mean("LCM", n, to_teacher) - 1 for n in (1, 2, 4, 8)]
    assert f"by {100 * min(farther):.0f} to {100 * max(farther):.0f}%, in every number" in words
    folder = ROOT / "assets/emoji_flow_teacher"
    card, psnr = (folder / "README.md").read_text(), json.loads((folder / "facts.json").read_text())
    assert f"{psnr['psnr']:.1f} dB" in card and f"{teacher['retrieval']:.0%} of its" in card
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 12e6
