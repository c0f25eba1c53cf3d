"""The comparison of methods: how it counts compute, its intervals, and a small one as a whole."""

import argparse
import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doc_commands import start
from helpers import normal, sd_schedule

from slam_jax.base.errors import InputError
from slam_jax.method.flow_matching import FlowMatching
from slam_jax.method.lcm import Lcm
from slam_jax.method.method import Examples, Networks
from slam_jax.method.pcm import Pcm
from slam_jax.method.slam import Slam
from slam_jax.method.slam_literal import SlamLiteral

ROOT = Path(__file__).parents[2]
SHAPE, BATCH = (2, 2, 4), 4


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The scripts import each other as files of one folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (Slam(w=2, gamma="paired", gammas_per_subpath=2), 9),
        (Slam(w=2, gamma="half"), 6),
        (Slam(w=2, gamma="one", gammas_per_subpath=2), 6),
        (Lcm(w=2), 6),
        (Lcm(w=0), 5),
        (SlamLiteral(w=2), 6),
        (Pcm(w=2), 6),
    ],
)
def test_passes_are_the_rows_that_networks_see(method, passes):
    """A gradient is counted as three passes: there, and twice as much back."""
    import methods

    seen = {"once": 0, "with gradient": 0}

    def counting(kind):
        def bind(params):
            def apply(x, t, context, gamma=None):
                seen[kind] += len(x)
                return params["a"] * x

            return apply

        return bind

    context = jnp.asarray(normal(1, BATCH, 4), jnp.float32)
    latents = jnp.asarray(normal(0, BATCH, *SHAPE), jnp.float32)
    null = 0 * context if method.w else None
    batch = Examples(latents, context, null, jnp.arange(BATCH))
    teacher = counting("once")({"a": 0.9})
    networks = Networks(counting("with gradient"), counting("once"), teacher, sd_schedule())
    weights = {"a": jnp.float32(1)}
    jax.eval_shape(lambda: method.loss(weights, weights, networks, batch, jax.random.key(0)))
    assert (seen["once"] + 3 * seen["with gradient"]) / BATCH == passes
    assert methods.passes_of(method) == passes


def options(tmp_path, **changes):
    """A command line of the digits."""
    import methods

    given = ["digits", "--passes", "57600", "--points", "5", "--runs", str(tmp_path)]
    parsed = methods.parse([*given, *(f"--{k}={v}" for k, v in changes.items())])
    parsed.task = methods.TASKS[parsed.task](parsed)
    return parsed


def test_runs_of_equal_compute_have_fewer_steps_where_a_step_costs_more(tmp_path):
    import methods

    parsed = options(tmp_path)
    made = {n: methods.config_of(v, 3, parsed) for n, v in methods.VARIANTS.items()}
    assert {name: config.training.steps for name, config in made.items()} == {
        "SLAM": 100,
        "LCM": 150,
        "SLAM, published": 150,
        "PCM, 4 phases": 150,
    }
    assert {config.training.keep_checkpoints for config in made.values()} == {14}
    assert {config.method.w for config in made.values()} == {2.0}
    assert made["SLAM"].seed == 3 and made["SLAM"].training.checkpoint_every == 20


def test_refusals_name_the_option(tmp_path):
    import methods

    parsed = options(tmp_path)
    parsed.passes = 100
    with pytest.raises(InputError, match="^--passes 100: too few for --points 5$"):
        methods.config_of({}, 0, parsed)
    parsed = options(tmp_path)
    parsed.change = {"method.weight": 3}
    with pytest.raises(InputError, match="^--change method.weight=3: "):
        methods.config_of({}, 0, parsed)
    parsed = options(tmp_path)
    for change in ("training.steps=3", "seed=7", "evaluation.samples=3"):
        changes = methods.changes_of([change])
        with pytest.raises(InputError, match=f"^--variant {change}: it follows from"):
            methods.config_of(changes, 0, parsed)
    for flags in (["--methods", "LCM;ADD"], ["--points", "1"], ["--variant", "slam", "w=1"]):
        with pytest.raises(SystemExit, match="2"):
            methods.parse(["digits", "--passes", "1000", *flags])
    emoji = argparse.Namespace(data="emoji:x", latents=None, judge=None)
    with pytest.raises(InputError, match="^--latents: the emoji need it"):
        methods.TASKS["emoji"](emoji)


def test_a_variant_may_be_a_lora(tmp_path):
    """Of the emoji's recipe: that of the digits has an embedding of gamma."""
    import methods

    flags = ["--variant", "LoRA 8", "student.kind=lora", "student.rank=8"]
    parsed = methods.parse(["emoji", "--passes", "72000", *flags])
    parsed.task = types.SimpleNamespace(recipe="emoji", prepare=lambda values: None)
    config = methods.config_of(parsed.variants["LoRA 8"], 3, parsed)
    assert (config.student.kind, config.student.rank, config.training.steps) == ("lora", 8, 249)


def test_a_flow_matching_teacher_is_distilled_by_the_methods_that_are_defined_for_it():
    import methods

    parsed = methods.parse(["emoji_flow", "--passes", "72000"])
    assert list(parsed.variants) == ["SLAM", "LCM", "PCM, 4 phases"]
    parsed.task = types.SimpleNamespace(recipe="emoji_flow", prepare=lambda values: None)
    for changes in parsed.variants.values():
        config = methods.config_of(changes, 0, parsed)
        config.method.check(FlowMatching())
        assert config.teacher.family == "sd3" and config.method.w == 2
    assert list(methods.parse(["emoji", "--passes", "72000"]).variants) == list(methods.VARIANTS)


def test_students_of_two_teachers_are_not_compared(tmp_path):
    import methods

    flags = ["--passes", "57600", "--runs", str(tmp_path), "--methods", "LCM"]
    with pytest.raises(SystemExit, match="^error: --variant: expected one teacher and its data"):
        methods.main(["digits", *flags, "--variant", "flow", "teacher.prediction_type=flow"])
    assert not list(tmp_path.iterdir())


def results(distances, seconds=(10.0, 20.0)):
    """Of students with these distances in one step: name -> [seed][checkpoint]."""
    import methods_tables

    rows = [
        {"student": name, "seed": seed, "steps": 1, "passes": 1000 * (i + 1), "seconds": when}
        | {"pictures": {"fd_to_teacher": by_seed[seed][i]}}
        for name, by_seed in distances.items()
        for seed in range(len(by_seed))
        for i, when in enumerate(seconds)
    ]
    teacher = [{"steps": 50, "pictures": {"fd_to_teacher": 0.0}}]
    return methods_tables.Results({"protocol": {}, "teacher": teacher, "rows": rows})


def test_intervals_are_students_t():
    """Of five values: 2.776 standard errors."""
    import methods_tables

    values = np.array([1.0, 2.0, 3.0, 4.0, 10.0])
    expected = 2.776445 * np.std(values, ddof=1) / 5**0.5
    assert methods_tables.half_width(values) == pytest.approx(expected, rel=1e-6)
    assert methods_tables.with_interval(values, methods_tables.three) == "4.000 ± 4.390"


def test_a_student_is_compared_with_lcm_seed_by_seed():
    """However much seeds differ, a constant ratio is a sure one; ratios around 1 are none."""
    import methods_tables

    lcm = [[2.0, 1.0], [4.0, 2.0], [8.0, 4.0]]
    better = [[1.8, 0.9], [3.6, 1.8], [7.2, 3.6]]
    unsure = [[1.8, 0.9], [3.6, 2.2], [7.2, 4.0]]
    found = results({"LCM": lcm, "better": better, "unsure": unsure})
    text = methods_tables.against(found, found.distances, found.last)
    assert "| better | 1 | **-10.0% ± 0.0%** |" in text
    assert "| unsure | 1 | +0.0% ± 24.8% |" in text and "| LCM |" not in text


def test_after_the_same_time_numbers_lie_between_checkpoints():
    found = results({"LCM": [[2.0, 1.0], [4.0, 2.0]]})
    (column,) = found.columns
    np.testing.assert_allclose(found.after(15.0, "LCM", 1, column), [1.5, 3.0])
    assert found.shortest() == 20.0


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Slam(), [989, 489]),
        (Lcm(num_ddim_timesteps=10), [949, 449]),
        (Pcm(phases=2), [989, 489]),
    ],
)
def test_between_is_the_middle_between_two_times_of_the_grid(method, expected):
    import methods_measure

    moved = methods_measure.between(method)
    assert moved.timesteps(2, sd_schedule()).tolist() == expected
    assert moved.loss.__func__ is type(method).loss and vars(moved) == vars(method)


def test_what_was_drawn_between_is_a_table_of_its_own():
    import methods_tables

    rows = results({"LCM": [[2.0], [4.0]], "SLAM": [[2.2], [4.4]]}, (10.0,)).rows
    moved = [{**row, "times": "between"} for row in rows]
    for row in moved:
        worse = 3 if row["student"] == "LCM" else 1
        row["pictures"] = {"fd_to_teacher": worse * row["pictures"]["fd_to_teacher"]}
    teacher = [{"steps": 50, "pictures": {"fd_to_teacher": 0.0}}]
    facts = {"command": "c", "machine": "m", "protocol": {"w": 2.0}, "teacher": teacher}
    report = {**facts, "rows": [*rows, *moved]}
    grid, between = (methods_tables.Results(report, t) for t in ("grid", "between"))
    text = list(methods_tables.text_of(grid, between))
    assert "| SLAM | 1 | **+10.0% ± 0.0%** |" in text[3]
    assert "| LCM | 1 | 9.000 ± 38.119 |" in text[-3]
    assert "| SLAM | 1 | **-63.3% ± 0.0%** |" in text[-1]


def test_colours_are_means_of_squares():
    import methods_tasks

    rng = np.random.default_rng(0)
    small = rng.uniform(-1, 1, (3, 8, 8, 3))
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    noise = rng.normal(size=(3, 8, 4, 8, 4, 3))
    noise -= noise.mean(axis=(2, 4), keepdims=True)
    found = methods_tasks.colours(large + noise.reshape(large.shape))
    np.testing.assert_allclose(found, small, atol=1e-12)


@pytest.mark.nightly
def test_a_comparison_goes_on_where_it_stopped(tmp_path):
    """With one seed more; what is there is measured once."""
    small = ["teacher.training.steps=20", "teacher.training.optimizer.warmup_steps=2"]
    command = [sys.executable, ROOT / "benchmarks/methods.py", "digits", "--passes", "6000"]
    command += ["--points", "2", "--methods", "SLAM;LCM", "--runs", "runs", "--out", "results"]
    for seeds in (2, 3):
        text = start([*command, "--seeds", seeds, "--change", *small], tmp_path)
        assert text.count("±") > 40 and "After the same time" in text
        if seeds == 2:
            first = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/*/summary.json")}
    assert first == {path: path.stat().st_mtime_ns for path in first} and len(first) == 4
    report = json.loads((tmp_path / "results/methods_digits.json").read_text())
    assert {row["seed"] for row in report["rows"]} == {0, 1, 2}
    assert {row["steps"] for row in report["rows"]} == {1, 2, 4, 8}
    assert (tmp_path / "results/methods_digits.png").stat().st_size > 10_000


def test_a_set_that_begins_another_is_drawn_once(monkeypatch):
    import methods_measure
    from methods_tasks import Prompts

    asked = []

    def draw(sampler, pipeline, weights, texts, steps, seed):
        asked.append(texts)
        return np.arange(len(texts)) + 100 * (texts[0] == "x")

    monkeypatch.setattr(methods_measure, "draw", draw)
    sets = [
        Prompts("first", ("a", "b"), quick=True),
        Prompts("all", ("a", "b", "c"), quick=False),
        Prompts("others", ("x", "b"), quick=False),
    ]
    drawn = methods_measure.draw_sets(None, None, None, sets, 4)
    assert {name: images.tolist() for name, images in drawn.items()} == {
        "first": [0, 1],
        "all": [0, 1, 2],
        "others": [100, 101],
    }
    assert sorted(asked) == [("a", "b", "c"), ("x", "b")]
