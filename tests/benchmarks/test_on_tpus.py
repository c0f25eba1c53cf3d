"""The script that compiles for TPUs: which programs the compiler gets, and what is refused."""

import json
from pathlib import Path

import jax
import pytest

from slam_jax.base.errors import BackendError
from slam_jax.parallel.program import products_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    """It, without a compiler: `lowered` has the programs."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import on_tpus

    on_tpus.lowered = []

    def compile_apart(topology, lower):
        on_tpus.lowered.append(lower(jax.devices()[: topology.size]))
        raise BackendError(f"the compiler for {topology} was ended")

    monkeypatch.setattr(on_tpus, "compile_apart", compile_apart)
    monkeypatch.setattr(on_tpus, "check_compiler", lambda: "0")
    return on_tpus


@pytest.mark.slow
def test_a_sampler_computes_in_bfloat16_and_what_stops_it_is_written(script, tmp_path):
    script.main(["--sampler", "--topology", "v5e:1x1", "--out", str(tmp_path)])
    (program,) = script.lowered
    assert products_of(program.as_text()).keys() == {"bf16 x bf16"}
    report = json.loads((tmp_path / "tpu_tiny_sampler_v5e_1x1.json").read_text())
    assert report["stopped"] == "the compiler for v5e:1x1 was ended" and "fits" not in report
    row = (tmp_path / "tpus.md").read_text().splitlines()[-1]
    assert row.startswith(
        "| v5e:1x1 | tiny: sampler, 4 steps, 1 row a device: the compiler for v5e"
    )


@pytest.mark.slow
def test_a_step_is_split_as_the_command_line_says(script, tmp_path):
    script.main(["--topology", "v5e:2x2", "--fsdp", "2", "--rows", "3", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "tpu_tiny_step_v5e_2x2.json").read_text())
    assert [report[name] for name in ("data", "fsdp", "remat", "devices")] == [2, 2, "full", 4]
    (program,) = script.lowered
    _, _, batch = program.in_avals[0]
    assert {array.shape[0] for array in batch.values()} == {12}
    # In bfloat16, but for the backward pass of jax's own attention: two in each of four shapes.
    products = products_of(program.as_text())
    assert products.pop("bf16 x bf16") > 400 and products == {"bf16 x f32": 8}


def test_a_program_is_a_row_of_the_table(script):
    traffic = [("all-gather", "bf16", 9, 3 << 30), ("reduce-scatter", "f32", 5, 1 << 30)]
    traffic += [("all-reduce", "f32", 1, 64 << 20), ("all-gather", "f32", 1, 1 << 30)]
    report = {"topology": "v5e:2x4", "model": "sd15", "rows_per_device": 2, "data": 1, "fsdp": 8}
    report |= {
        "remat": "full",
        "optimization_level": "O1",
        "arguments": 2 << 30,
        "temporary": 5 << 30,
        "code": 9 << 20,
    }
    report |= {"traffic": traffic, "whole": 162 << 20, "seconds": 600.0, "host_bytes": 8 << 30}
    head, line, row = script.table([report]).splitlines()
    assert head.count("|") == line.count("|") == row.count("|")
    assert row == (
        "| v5e:2x4 | sd15: step, data=1, fsdp=8, 2 rows a device, remat full, O1 | 2.00 GiB "
        "| 5.00 GiB | 9 MiB | 4.00 GiB | 0.16 GiB | 1.06 GiB | 10 min, 8.0 GiB |"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--sampler --topology v5e:2x2", "--sampler: is for one device"),
        ("--sampler --topology v5e:1x1 --remat none", "--sampler: is for one device"),
        ("--topology v5e:2x2 --fsdp 3", "--fsdp 3: does not divide the 4 devices"),
        ("--topology h100", "--topology h100: expected a kind of TPU"),
    ],
)
def test_what_does_not_fit_is_refused(script, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        script.main([*arguments.split(), "--out", str(tmp_path)])
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
