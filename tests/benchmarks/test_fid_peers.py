"""The benchmark of FID beside other programs: what it compares and says, with a tiny network."""

import json
import re
import subprocess
import sys
from pathlib import Path

import colours
import pytest

from slam_jax.features.registry import NETWORKS, Kind

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fid_peers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import fid_peers

    return fid_peers


@pytest.fixture
def tiny(monkeypatch, fid_peers):
    """Starts it; the other programs say what they are told to."""
    for name, seed in (("inception", "0"), ("inception_tf1", "1")):
        monkeypatch.setitem(NETWORKS, name, Kind(lambda _, seed=seed: colours.open_colours(seed)))
    monkeypatch.setattr(fid_peers.runtime, "configure", lambda: None)  # conftest did
    monkeypatch.setattr(fid_peers, "write_weights", Path.touch)

    def start(said, out):
        def run(command, **_):
            assert command[0] == "other/python" and command[1].endswith("fid_of_peers.py")
            drawn, real = map(Path, command[2:4])
            assert [len(list(folder.glob("*.png"))) for folder in (drawn, real)] == [12, 12]
            assert command[5] == "2"  # pictures of one size at a time
            said_by = {"versions": {}, **said}
            return subprocess.CompletedProcess([], 0, stdout=f"note\n{json.dumps(said_by)}\n")

        monkeypatch.setattr(fid_peers.subprocess, "run", run)
        try:
            fid_peers.main(["--python", "other/python", "--count", "6", "--out", str(out)])
        finally:
            report = json.loads((out / "fid_peers.json").read_text())
        return report["compared"]

    return start


def test_what_differs_is_an_error_and_what_agrees_is_written(tiny, tmp_path):
    wrong = {
        "torch-fidelity": dict(fid=0.0, precision=2.0, recall=2.0),
        "clean-fid": dict(fid=0.0),
    }
    with pytest.raises(SystemExit, match="than is allowed: fid_tf1, precision, recall, fid$"):
        tiny(wrong, tmp_path)
    rows = json.loads((tmp_path / "fid_peers.json").read_text())["compared"]
    fid_tf1, precision, recall, fid = (row["ours"] for row in rows)
    assert fid != fid_tf1 and 0 <= precision <= 1 and 0 <= recall <= 1
    right = {
        "torch-fidelity": dict(fid=fid_tf1 - 9e-4, precision=precision, recall=recall),
        "clean-fid": dict(fid=fid + 9e-3),
    }
    rows = tiny(right, tmp_path)
    assert [row["difference"] for row in rows] == pytest.approx([9e-4, 0, 0, 9e-3])
    assert rows[3]["relative"] == pytest.approx(9e-3 / (fid + 9e-3))


def test_without_the_other_programs_it_says_how_to_get_them(fid_peers, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="")
    monkeypatch.setattr(fid_peers.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit) as stopped:
        fid_peers.theirs(sys.executable, "drawn")
    said = str(stopped.value)
    assert "cannot measure; pip install torch-fidelity clean-fid torch torchvision" in said


def test_the_page_shows_what_was_measured():
    page = (ROOT / "docs/evaluation.md").read_text()
    report = json.loads((ROOT / "benchmarks/results/fid_peers.json").read_text())
    assert report["command"].partition(" --python ")[0] in page
    for row in report["compared"]:
        assert row["difference"] <= row["allowed"]
        numbers = f"{row['ours']:.5f} | {row['theirs']:.5f} | {row['difference']:.1g}"
        assert re.search(rf"\| `{row['metric']}` \| {row['program']} [\d.]+ \| {numbers} ", page)
