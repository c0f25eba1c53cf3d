"""The notebook in examples/: what is committed is a finished run, and it runs again."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
PATH = ROOT / "examples/slam_in_2d.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def outputs(notebook, kind):
    found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in found if output.output_type == kind]


def pictures(notebook):
    """Whether each thing displayed is a picture."""
    return ["image/png" in output.data for output in outputs(notebook, "display_data")]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_committed_notebook_is_one_run_without_errors_and_small(notebook):
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert not outputs(notebook, "error")
    assert {output.name for output in outputs(notebook, "stream")} == {"stdout"}  # no warnings
    assert len(pictures(notebook)) == 7 and all(pictures(notebook))
    assert PATH.stat().st_size < 700_000


@pytest.mark.slow
def test_notebook_runs_in_a_fresh_kernel_and_its_assertions_hold(notebook):
    shown = pictures(notebook)
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    # As a user runs it: one device, and programs compiled with all optimisations.
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    env["PYTHONPATH"] = str(ROOT)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(env=env)  # raises where a cell does
    assert pictures(notebook) == shown
