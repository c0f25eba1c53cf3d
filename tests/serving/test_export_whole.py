"""An export is whole or not at all, and replaces nothing but an export."""

import dataclasses
import errno
import shutil

import jax
import numpy as np
import pytest
import tiny_students
from helpers import files_in

from slam_jax.base.errors import InputError
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.formats import safetensors as weights
from slam_jax.formats.diffusers_folder import Folder
from slam_jax.formats.flax_folder import load_model

DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


def fail_at(monkeypatch, number, error):
    """From now on the `number`-th file of arrays that is written raises `error`, half written."""
    whole, written = weights.save_file, []

    def save_file(arrays, path, metadata):
        written.append(path)
        if len(written) == number:
            path.write_bytes(b"half of i")
            raise error
        whole(arrays, path, metadata=metadata)

    monkeypatch.setattr(weights, "save_file", save_file)


@pytest.mark.parametrize("number", [1, 2])  # the UNet for torch, the UNet for Flax
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (DISK_FULL, InputError),
        (OSError("I/O error: No space left on device (os error 28)"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
def test_a_failing_export_leaves_nothing(sd15, tmp_path, monkeypatch, number, error, raised):
    fail_at(monkeypatch, number, error)
    with pytest.raises(raised) as caught:
        tiny_students.export(sd15, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    if raised is InputError:
        text = str(caught.value)
        assert str(tmp_path / "out") in text and "No space left" in text and "\n" not in text


@pytest.mark.parametrize("error", [DISK_FULL, KeyboardInterrupt()])
def test_a_failing_export_keeps_the_earlier_one(sd15, exported, tmp_path, monkeypatch, error):
    out = shutil.copytree(exported, tmp_path / "out")
    before = files_in(out)
    (tmp_path / ".out.unfinished").mkdir()  # of an export that was killed
    fail_at(monkeypatch, 2, error)
    with pytest.raises((InputError, KeyboardInterrupt)):
        tiny_students.export(sd15, out)
    assert files_in(out) == before and list(tmp_path.iterdir()) == [out]


def test_an_export_replaces_an_earlier_one_wholly(teachers, exported, tmp_path):
    out = shutil.copytree(exported, tmp_path / "out")
    (out / "unet/of_yesterday").write_text("")
    made = tiny_students.make(teachers["sd15"], seed=1)
    tiny_students.export(made, out)
    assert not (out / "unet/of_yesterday").exists() and list(tmp_path.iterdir()) == [out]
    jax.tree.map(np.testing.assert_array_equal, load_model(out / "flax").params, made[0].params)


def test_an_export_that_was_killed_between_its_renames_is_found_again(sd15, exported, tmp_path):
    shutil.copytree(exported, tmp_path / ".out.old")
    student = dataclasses.replace(sd15[0], info={})  # fails before anything is written
    with pytest.raises(InputError, match="method is None"):
        tiny_students.export((student, sd15[1]), tmp_path / "out")
    tiny_students.export(sd15, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_that_are_no_exports_are_left_alone(sd15, tmp_path):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.txt").write_text("years of work")
    for out in (other, other / "chapter1.txt"):
        with pytest.raises(InputError, match="no earlier export"):
            tiny_students.export(sd15, out)
    assert files_in(tmp_path) == {"thesis/chapter1.txt": b"years of work"}


def test_an_export_beside_something_else_is_left_alone(sd15, exported, tmp_path):
    out = shutil.copytree(exported, tmp_path / "out")
    (out / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="no earlier export"):
        tiny_students.export(sd15, out)
    assert (out / "thesis.tex").exists() and (out / "slam.json").exists()


def test_a_student_does_not_replace_its_teacher(changeable):
    before, made = files_in(changeable), tiny_students.make(changeable)
    for out in (changeable, changeable.parent):
        with pytest.raises(InputError, match="the teacher is in it"):
            tiny_students.export(made, out)
    assert files_in(changeable) == before


def test_a_missing_file_of_the_teacher_is_named(sd15, teachers, tmp_path):
    folder = shutil.copytree(teachers["sd15"], tmp_path / "teacher")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    family = StableDiffusion(sd15[1].pipeline, Folder(folder, str(folder)))
    with pytest.raises(InputError, match="vae/diffusion_pytorch_model.safetensors: missing"):
        tiny_students.export((sd15[0], family), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [folder]
