"""A LoRA in whole runs: what is trained, what goes on, what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_runs
from digits_runs import SHORT
from helpers import interrupt_in_step
from PIL import Image
from small_digits import LORA, Run

import slam_jax
from slam_jax.base.errors import InputError
from slam_jax.commands import export, sample
from slam_jax.config.command_line import read_recipe
from slam_jax.config.options import Precision
from slam_jax.config.validate import freeze
from slam_jax.formats.flax_folder import load_model
from slam_jax.formats.safetensors import load_arrays
from slam_jax.method.pcm import Pcm
from slam_jax.models import lora
from slam_jax.models.functional import flatten
from slam_jax.recipes.distil import teacher_dtype
from slam_jax.serving import stock_pipeline
from slam_jax.training.loop import Interrupted

SMALL = {
    **SHORT,
    "training": {**SHORT["training"], "checkpoint_every": 2},
    "student": {"kind": "lora", "rank": 2, "alpha": 3.0},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    slam_jax.distill("digits", folder, **SMALL)
    return folder


@pytest.mark.slow
def test_only_targets_are_unlike_the_teacher(finished):
    teacher, student = (
        flatten(load_model(finished / name).params) for name in ("teacher", "export")
    )
    changed = {path for path, leaf in teacher.items() if np.any(leaf != student[path])}
    targets = tuple(f".{name}.kernel" for name in lora.TARGETS)
    assert changed == {path for path in teacher if f".{path}".endswith(targets)}
    for path in changed:
        change = (student[path] - teacher[path]).reshape(-1, student[path].shape[-1])
        sizes = np.linalg.svd(change.astype(np.float64), compute_uv=False)
        assert np.all(sizes[2:] <= 1e-3 * sizes[0] + 1e-7), path  # of rank 2
    record = json.loads((finished / "export" / "config.json").read_text())["info"]["student"]
    assert record["kind"] == "lora" and record["rank"] == 2
    again = slam_jax.sample(slam_jax.load(finished), ["3"], steps=2)
    assert again.std() > 1


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch):
    interrupt_in_step(monkeypatch, 3)
    with pytest.raises(Interrupted):
        slam_jax.distill("digits", tmp_path, **teacher_of(finished))
    monkeypatch.undo()
    slam_jax.distill("digits", tmp_path, resume=True, **teacher_of(finished))
    ours, theirs = (load_model(run / "export").params for run in (tmp_path, finished))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    with pytest.raises(InputError, match="config.student.alpha is 4.0 here and 3.0 there"):
        other = {**SMALL["student"], "alpha": 4.0}
        changed = {**teacher_of(finished), "student": other}
        slam_jax.distill("digits", tmp_path, resume=True, **changed)


def teacher_of(run):
    """The options of a run with the teacher of another one."""
    return {**SMALL, "teacher": {**SMALL["teacher"], "path": str(run / "teacher")}}


@pytest.mark.nightly
def test_the_recipe_sd_lora_leaves_a_lora(teachers, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    flags = ["--config.method.conditioning=snr", "--config.training.steps=2"]
    flags += ["--config.training.sample_every=0"]
    tiny_runs.launch(teachers["sd15"], run, *flags, config="sd_lora")
    names = {path.name for path in (run / "export").iterdir()}
    assert names == {"pytorch_lora_weights.safetensors", "scheduler", "slam.json", "README.md"}
    assert slam_jax.load(run).method.conditioning == "snr"
    common = ["--prompt", "a cat", "--steps", "2", "--out"]
    sample.main(["--model", str(run), *common, str(tmp_path / "alone.png")])
    both = ["--model", str(teachers["sd15"]), "--lora", str(run)]
    sample.main([*both, *common, str(tmp_path / "both.png")])
    alone, both = (Image.open(tmp_path / f"{name}.png") for name in ("alone", "both"))
    assert json.loads(both.text["parameters"])["lora"] == [str(run)]
    np.testing.assert_array_equal(np.asarray(alone), np.asarray(both))
    assert np.asarray(alone).std() > 1
    monkeypatch.setattr(stock_pipeline, "STEPS", (2,))
    capsys.readouterr()
    for name, *more in (["lora", "--lora-keys", "diffusers"], ["merged", "--merge"]):
        out = tmp_path / name
        export.main(["--workdir", str(run), "--out", str(out), "--verify", *more])
        table, said = capsys.readouterr().out.splitlines()[1:]
        assert said == f"student: {out}" and float(table.split()[1]) <= 0.5
    assert {path.name for path in (tmp_path / "lora").iterdir()} == names
    assert "unet.mid_block.resnets.0.conv1.lora_A.weight" in load_arrays(
        tmp_path / "lora/pytorch_lora_weights.safetensors"
    )
    assert {path.name for path in (tmp_path / "merged").iterdir()} > {*names, "unet", "flax"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"student.rank": 0}, "config.student.rank = 0, expected a number at least 1"),
        ({"student.kind": "dora"}, "config.student.kind = 'dora', expected one of full, lora"),
        ({"student.alpha": -1.0}, "config.student.alpha = -1.0, expected a number at least 0"),
        (
            {"method.conditioning": "both"},
            "config.method.conditioning = 'both', expected snr: a LoRA has no place for another",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_the_config(change, expected):
    values = read_recipe("sd_lora:tiny")
    values.update_from_flattened_dict(change)
    with pytest.raises(InputError) as error:
        freeze(values)
    assert str(error.value).startswith(expected)


def test_the_method_as_published_cannot_be_a_lora():
    values = read_recipe("sd_lora:tiny").to_dict()
    values["method"] = {"name": "slam_literal"}
    expected = (
        "^config.method.name = 'slam_literal', expected slam, lcm or pcm: a LoRA has no place"
    )
    with pytest.raises(InputError, match=expected):
        freeze(values)


@pytest.mark.nightly
def test_two_seeds_begin_with_other_adapters(finished, tmp_path):
    """And the phases of PCM, which its export's card says."""
    first = slam_jax.load(finished).params
    options = teacher_of(finished) | {"method": {"name": "pcm", "phases": 2}, "seed": 1}
    student = slam_jax.distill("digits", tmp_path, **options)
    assert student.method == Pcm(w=2.0, phases=2)
    downs = [
        params["mid_block"]["resnets"]["0"]["conv1"]["kernel"] for params in (first, student.params)
    ]
    assert np.any(downs[0] != downs[1])


@pytest.mark.slow
def test_bfloat16_computes_with_sums_that_are_made_in_float32():
    """Else a step's change, smaller than bfloat16's spacing, would be lost."""
    half = Precision(teacher="bfloat16", target="bfloat16", student="bfloat16")
    config = dataclasses.replace(LORA, precision=half)
    assert teacher_dtype(config) == "float32" and teacher_dtype(LORA) == "float32"
    ours, exact = (Run(1, 1, 1, c).losses(4)[:, 0] for c in (config, LORA))
    assert 1e-6 < np.abs(ours / exact - 1).max() < 3e-2


def test_a_rank_that_is_too_large_is_refused_before_training(finished, tmp_path):
    options = {**teacher_of(finished), "student": {"kind": "lora", "rank": 1000}}
    with pytest.raises(
        InputError, match=r"^config.student.rank = 1000, expected at most \d+, the "
    ):
        slam_jax.distill("digits", tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
