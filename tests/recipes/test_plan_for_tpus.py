"""The plan of a run on TPUs that are not here, and what it refuses."""

import re

import pytest

from slam_jax.commands import plan
from slam_jax.config.options import Mesh
from slam_jax.parallel.program import Program, Traffic
from slam_jax.parallel.topology import DoesNotFit
from slam_jax.recipes import plan_for_tpus

DIGITS = ["--config", "digits"]
GIB = 2**30


def run(capsys, *arguments):
    """(what a plan says, its exit status or error)."""
    with pytest.raises(SystemExit) as exit_:
        plan.main([*DIGITS, *arguments])
    return capsys.readouterr().out, exit_.value.code


def program(gib):
    """One that needs so much."""
    traffic = (Traffic("all-gather", "bf16", 3, 2**20),)
    return Program(
        int(gib * GIB), 0, 0, 0, 1e12, traffic, 2**21, {"bf16 x bf16": 5, "f32 x f32": 2}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--topology v5e", "--topology v5e: expected a kind of TPU"),
        ("--topology v5e:2x2 --mesh data=8", "--mesh data=8,fsdp=1: 8 devices, but v5e:2x2 has 4"),
        ("--topology v5e:2x2 --memory 16", "--memory: not with --topology"),
        ("--topology v5e:2x2 --no-compile", "--no-compile: not with --topology"),
        (
            "--topology v5e:2x2 --config.mesh.fsdp=8",
            "data = 1 times fsdp = 8, but 4 devices are in v5e:2x2",
        ),
        ("--topology v5e:2x2 --config.training.batch_size=6", "a multiple of the 4 devices"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(capsys, arguments, message):
    text, error = run(capsys, *arguments.split())
    assert text == "" and error.startswith("error: ") and message in error and "\n" not in error


def test_a_step_that_fits_is_described(capsys, monkeypatch):
    asked = []

    def compiled(topology, lower):
        asked.append((str(topology), lower.args[0].mesh))
        return program(2)

    monkeypatch.setattr(plan_for_tpus, "compile_apart", compiled)
    text, status = run(capsys, "--topology", "v5p:2x2x2", "--config.mesh.fsdp=2")
    assert status == 0 and asked == [("v5p:2x2x2", Mesh(4, 2))]
    assert re.search(r"^arguments +2.00 GiB$", text, re.MULTILINE)
    # Two sums of two kinds, of shapes and of what was compiled: each says which it is.
    assert re.search(r"^sum without padding +[\d.]+ [MG]iB$", text, re.MULTILINE)
    assert re.search(r"^sum, which has to fit +2.00 GiB$", text, re.MULTILINE)
    assert re.search(r"^all-gather +bf16 +3 times +1.00 MiB$", text, re.MULTILINE)
    assert re.search(r"^gathered arrays at a time +2.00 MiB$", text, re.MULTILINE)
    assert "5 of bf16 x bf16, 2 of f32 x f32" in text and "\n1 TFLOP on each device" in text
    assert text.endswith("fits: XLA compiled it for v5p:2x2x2, with 95.00 GiB on each device\n")


def test_flags_are_offered_that_make_it_fit(capsys, monkeypatch):
    def compiled(topology, lower):
        if lower.args[0].training.remat == "none":
            raise DoesNotFit.of("Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm.")
        return program(3)

    monkeypatch.setattr(plan_for_tpus, "compile_apart", compiled)
    text, status = run(capsys, "--topology", "v5e:2x2")
    assert status == 1
    assert "does not fit into v5e:2x2; this does:\n" in text
    assert "--config.training.remat=minimal" in text.splitlines()[-1]


@pytest.mark.parametrize("need", ["48.00G", "15.90G"])  # a chip's 16 are not all for programs
def test_nothing_is_offered_where_nothing_fits(capsys, monkeypatch, need):
    def compiled(topology, lower):
        raise DoesNotFit.of(f"the total memory required ({need}) exceeds available HBM (15.75G).")

    monkeypatch.setattr(plan_for_tpus, "compile_apart", compiled)
    text, status = run(capsys, "--topology", "v5e:2x2")
    assert status == 1 and text.endswith("nor does anything else on as many devices\n")


def test_the_memory_that_is_needed_is_read_in_what_the_compiler_says():
    used = "RESOURCE_EXHAUSTED: E1000: Ran out of memory. Used 215.17G of 31.25G hbm. Exceeded"
    total = "the total memory required for HLO temporaries (48.00G) exceeds available HBM (15.75G)."
    needs = [DoesNotFit.of(said).need / GIB for said in (used, total, "too large")]
    assert needs == [215.17, 48.0, float("inf")]


@pytest.mark.slow
def test_a_state_that_is_larger_than_a_chip_is_not_compiled(capsys, monkeypatch):
    monkeypatch.setattr(plan_for_tpus, "held_bytes", lambda config, family: 17 * GIB)
    monkeypatch.setattr(plan_for_tpus, "compile_apart", None)
    _, status = run(capsys, "--topology", "v5e:2x2")
    assert status == 1


@pytest.mark.slow
def test_the_step_of_the_digits_on_four_chips(capsys):
    """Each weight is gathered for the student and for its average, and its gradient summed once."""
    options = "--topology v5e:2x2 --config.mesh.fsdp=4 --config.method.name=lcm"
    text, status = run(capsys, *options.split())
    assert status == 0
    rows = re.findall(r"^([a-z]+-[a-z]+) +(\S+) +\d+ times +([\d.]+) MiB$", text, re.MULTILINE)
    moved = sum(float(size) for kind, _, size in rows if kind != "all-gather")
    weights = float(re.search(r"^gradients +([\d.]+) MiB", text, re.MULTILINE)[1])
    assert weights <= moved * 1.01 and moved <= 1.05 * weights
    assert {dtype for kind, dtype, _ in rows if kind != "all-gather"} == {"f32"}
    assert "fits: XLA compiled it for v5e:2x2, with 16.00 GiB on each device" in text
