"""What slam-jax evaluate and reference refuse, in one line, before anything is drawn; and what a
preset fixes."""

import errno
import json
import re
import shutil
from types import SimpleNamespace

import colours
import numpy as np
import pytest
from evaluated import options, results
from PIL import Image

from slam_jax.base.errors import InputError
from slam_jax.commands import evaluate, reference
from slam_jax.evaluation import parts
from slam_jax.evaluation.presets import PRESETS, Preset
from slam_jax.recipes.measure import metrics_for

pytestmark = pytest.mark.usefixtures("registered")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--metrics", "fidelity"], "--metrics fidelity: expected of fd_pixels, "),
        (["--steps", "1,0"], "error: --steps: invalid"),
        (["--steps", "60"], "60"),
        (["--count", "6"], "6 pictures: fd_colours_reference takes 7 or more; .* use cmmd"),
        (["--prompts-seed", "-8"], "--prompts-seed -8: expected 0 to 2147483647"),
        (["--count", "-5"], "--count -5: expected 1 or more"),
        (
            ["--count", "10", "--per-prompt", "4"],
            "--count 10: expected a multiple of --per-prompt 4",
        ),
        (["--size", "-5"], "--size -5: expected"),
        (["--metrics", "fd_pixels"], "--reference: no metric here reads it"),
        (
            ["--metrics", "fd_pixels", "--reference", "", "--size", "8"],
            "--size: no metric here reads",
        ),
        (["--reference", "nowhere"], "nowhere: "),
        (["--reference", ""], "--reference: a metric compares with real pictures"),
        (["--weights", "colour=3"], "--weights colour=3: expected NETWORK=PATH"),
        (["--weights", "dinov2=3"], "--weights dinov2=3: no metric reads dinov2; .* colours"),
        (["--preset", "coco"], "coco: no such preset, expected one of coco2014_30k"),
        (["--seed", "-1"], "--seed -1"),
        (["--batch", "0"], "--batch 0: expected 1 or more"),
        (["--guidance", "3"], "a student has its guidance built in"),
        (["--teacher", "RUN"], "--teacher .*: is a student"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(
    run, real, tmp_path, capsys, changes, message
):
    changes = [str(run) if word == "RUN" else word for word in changes]
    with pytest.raises(SystemExit) as refused:
        evaluate.main(options(run, real, tmp_path / "out", *changes))
    said = capsys.readouterr().err if refused.value.code == 2 else str(refused.value)
    assert re.search(message, said) and "\n" not in said.strip().split("error: ")[-1]
    assert not (tmp_path / "out").exists()


def test_large_pictures_need_a_metric_and_the_help_says_so(capsys):
    model = SimpleNamespace(pipeline=SimpleNamespace(image_size=(64, 64)))
    with pytest.raises(
        InputError, match="^--metrics or --preset: expected one, as those of pixels"
    ):
        metrics_for(SimpleNamespace(metrics=""), model)
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "empty: of pixels, for the digits alone; others need it or --preset" in said


def test_a_folder_with_another_measurement_is_refused(run, real, measured):
    with pytest.raises(SystemExit, match="holds another measurement: seed was 0 and is 1; choose"):
        evaluate.main(options(run, real, measured, "--seed", "1"))
    with pytest.raises(SystemExit, match="holds no measurement, but is not empty"):
        evaluate.main(options(run, real, run))


def test_another_reference_in_the_same_place_is_another_measurement(run, real, measured, tmp_path):
    """As many pictures of the same names, with other contents."""
    out, folder = shutil.copytree(measured, tmp_path / "out"), shutil.copytree(real, tmp_path / "x")
    arguments = options(run, folder, out)
    with pytest.raises(SystemExit, match="holds another measurement: reference.path was"):
        evaluate.main(arguments)
    arguments = options(run, folder, tmp_path / "again", "--steps", "1")
    evaluate.main(arguments)
    Image.open(folder / "001.png").save(folder / "000.png")
    with pytest.raises(SystemExit, match="holds another measurement: reference.identity was"):
        evaluate.main(arguments)


@pytest.mark.parametrize("count", [1, 5])
def test_few_real_pictures_are_refused(run, real, tmp_path, count):
    few = tmp_path / "few"
    few.mkdir()
    for index in range(count):
        shutil.copy(real / f"{index:03d}.png", few)
    with pytest.raises(SystemExit, match=f"{count} real pictures: fd_colours_reference takes 7"):
        evaluate.main(options(run, few, tmp_path / "out"))
    if count == 1:
        names = ["--metrics", "fd_colours_reference", "--out", str(tmp_path / "x.npz")]
        with pytest.raises(SystemExit, match="one picture; expected two or more"):
            reference.main(["--images", str(few), *names])
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def broken(kind, path):
    if kind == "no zip":
        path.write_bytes(b"mu and sigma")
    elif kind == "an array":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif kind == "no record":
        np.savez(path, mean=np.ones(6))
    else:
        identity = {"colours": colours.open_colours("0").identity}
        record = {"networks": identity, "size": 0, "count": 80}
        np.savez(path, record=np.array(json.dumps(record)))


@pytest.mark.parametrize("kind", ["no zip", "an array", "no record", "no mean"])
def test_damaged_statistics_are_one_line(run, tmp_path, kind):
    broken(kind, tmp_path / "a.npz")
    with pytest.raises(SystemExit, match="a.npz: .*make it again with slam-jax reference"):
        evaluate.main(options(run, tmp_path / "a.npz", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_preset_fixes_prompts_size_and_reference(run, tmp_path, monkeypatch):
    """One of tests, for the digits; its prompts are labels."""
    preset = Preset(
        "tiny_20",
        "of tests",
        count=20,
        prompts=("captions.txt",),
        reference=(),
        pictures=0,
        where="here",
        picture_size=8,
        metrics=("fd_colours_teacher",),
    )
    monkeypatch.setitem(PRESETS, "tiny_20", preset)
    (tmp_path / "captions.txt").write_text("\n".join(str(i % 10) for i in range(30)))
    arguments = ["--model", str(run), "--preset", "tiny_20", "--data", str(tmp_path)]
    arguments += ["--steps", "2", "--teacher-steps", "3", "--out", str(tmp_path / "out")]
    evaluate.main(arguments)
    found = results(tmp_path / "out")
    assert found["preset"] == "tiny_20" and found["results"][0]["pictures"] == 20
    assert found["protocol"]["size"] == 8 and found["protocol"]["prompts"]["count"] == 20
    assert "this measurement" in (tmp_path / "out/results.md").read_text()
    for option, value in (("count", "5"), ("size", "16"), ("per-prompt", "2"), ("prompts", "x")):
        with pytest.raises(SystemExit, match=f"--{option}: tiny_20 fixes it; leave it out"):
            evaluate.main([*arguments, f"--{option}", value])
    evaluate.main([*arguments[:-1], str(tmp_path / "other"), "--metrics", "rmse_to_teacher"])
    assert results(tmp_path / "other")["results"][0]["rmse_to_teacher"] > 0  # reads no size
    with pytest.raises(SystemExit, match="give a file of slam-jax reference"):
        evaluate.main([*arguments, "--reference", str(tmp_path)])


def test_a_full_disk_is_one_line(run, real, tmp_path, monkeypatch):
    def write(self, number, arrays):
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path(number)))

    monkeypatch.setattr(parts.Parts, "write", write)
    with pytest.raises(SystemExit, match="00000.safetensors: cannot be written .*make room"):
        evaluate.main(options(run, real, tmp_path / "out"))
