"""A data source from outside the package: pictures of stripes, on which Stable Diffusion is
distilled, and which `prepare` and `inspect` take too."""

import json

import numpy as np
import pytest
import tiny_runs

import slam_jax
from slam_jax.commands import export, inspect, prepare
from slam_jax.data.examples import Example
from slam_jax.data.rejects import Rejects
from slam_jax.data.sources import SOURCES, Kind


class Stripes:
    """32 pictures with stripes of various widths."""

    name, identity, rejects = "stripes", "stripes of 32 widths", Rejects()

    def __len__(self):
        return 32

    def __getitem__(self, index):
        across = (np.arange(96) // (index + 1)) % 2 * 255
        image = np.broadcast_to(across[None, :, None], (80, 96, 3)).astype(np.uint8)
        return Example(f"stripes/{index}", image, (f"stripes of {index + 1} pixels",))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    kind = Kind(lambda name: name == "stripes", lambda data: Stripes(), True, "photographs")
    monkeypatch.setitem(SOURCES, "stripes", kind)


def test_it_is_inspected(capsys, tmp_path):
    inspect.main(["stripes", "--out", str(tmp_path / "sheet.png")])
    said = capsys.readouterr().out
    assert "32" in said and "stripes of" in said


@pytest.mark.nightly
def test_it_is_trained_on_and_the_student_draws(teachers, tmp_path):
    few = ["--config.training.steps=2", "--config.training.sample_every=0"]
    source = "--config.data.source=stripes"
    tiny_runs.launch(teachers["sd15"], tmp_path / "run", source, *few)
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["source"] == "stripes"
    student = slam_jax.load(tmp_path / "run")
    assert slam_jax.sample(student, "stripes", steps=1).shape == (1, 64, 64, 3)
    rows = json.loads((tmp_path / "run/summary.json").read_text())["results"]
    assert {row["model"] for row in rows} == {"teacher", "student"}
    export.main(["--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "student")])
    assert (tmp_path / "student/model_index.json").exists()


@pytest.mark.slow
def test_it_is_prepared(teachers, tmp_path):
    model = ["--model", str(teachers["sd15"]), "--resolution", "64"]
    prepare.main(["--source", "stripes", *model, "--out", str(tmp_path / "latents")])
    plan = json.loads((tmp_path / "latents/plan.json").read_text())
    assert plan["examples"] == 32 and plan["source"] == "stripes"


def test_an_option_that_it_does_not_read_is_refused(teachers, tmp_path):
    with pytest.raises(SystemExit, match="index = 'x' means nothing to it"):
        tiny_runs.launch(
            teachers["sd15"],
            tmp_path / "run",
            "--config.data.source=stripes",
            "--config.data.index=x",
        )
    assert not (tmp_path / "run").exists()
