"""slam-jax evaluate and reference: numbers, meshes, processes, kills and files. The pictures are a
small student's of the digits, the network is one of tests."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import colours
import jax
import numpy as np
import pytest
from evaluated import options, results
from PIL import Image

import slam_jax
from slam_jax.commands import evaluate, reference
from slam_jax.data import digits
from slam_jax.drawing.metrics.frechet import between
from slam_jax.drawing.metrics.metric import flat
from slam_jax.evaluation import parts
from slam_jax.features.moments import frechet_distance, moments_of

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("registered")
ONE_STEP = ("--steps", "1")  # each number of steps is a program to compile


def test_numbers_are_those_of_the_pictures_that_sample_draws(run, measured):
    student, teacher = slam_jax.load(run), slam_jax.load(run / "teacher")
    prompts = [str(index % 10) for index in range(70)]
    network = colours.open_colours("0")
    real, _ = digits.load()

    def seen(images):
        rgb = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
        x = np.stack([network.prepare(image) for image in rgb])
        return np.asarray(network.apply(network.params, x))

    draws = {steps: slam_jax.sample(student, prompts, steps) for steps in (1, 2)}
    of_teacher = slam_jax.sample(teacher, prompts, 3, guidance=student.method.w + 1)
    as_uint8 = np.round((real[:80] + 1) * 127.5).astype(np.uint8)
    rows = results(measured)["results"]
    assert [(row["model"], row["steps"], row["pictures"]) for row in rows] == [
        *(("student", 1, 70), ("student", 2, 70))
    ]
    for row in rows:
        images = draws[row["steps"]]
        assert row["fd_colours_teacher"] == pytest.approx(
            between(seen(images), seen(of_teacher)), rel=1e-4
        )
        assert row["fd_colours_reference"] == pytest.approx(
            between(seen(images), seen(as_uint8)), rel=1e-4
        )
        low, high = row["fd_colours_reference_interval"]
        assert low < row["fd_colours_reference"] < high
        # Without --reference the digits bring their own; with it these are not compared in pixels.
        assert "fd_pixels" not in row


def test_the_digits_bring_their_own_reference(run, tmp_path, capsys):
    arguments = ["--model", str(run), "--count", "70", "--steps", "2", "--out", str(tmp_path / "m")]
    evaluate.main([*arguments, "--metrics", "fd_pixels,label_accuracy"])
    (row,) = results(tmp_path / "m")["results"]
    images = slam_jax.sample(slam_jax.load(run), [str(i % 10) for i in range(70)], 2)
    expected = between(flat(images / 127.5 - 1), flat(digits.load()[0]))
    assert row["fd_pixels"] == pytest.approx(expected, rel=1e-5)
    assert 0 <= row["label_accuracy"] <= 1
    assert "| student | 2 | 70 |" in capsys.readouterr().out


def test_the_record_says_how_it_was_measured(run, measured, real):
    protocol = results(measured)["protocol"]
    assert protocol["prompts"]["count"] == 70 and protocol["seed"] == 0
    assert protocol["teacher"]["steps"] == 3 and protocol["teacher"]["guidance"] == 3
    assert protocol["networks"]["colours"]["sha256"]
    assert protocol["reference"]["count"] == 80 and len(protocol["reference"]["sha256"]) == 64
    ours, others = (protocol[name]["sha256"]["denoiser"] for name in ("model", "teacher"))
    assert len(ours) == 64 and ours != others
    assert protocol["model"]["method"]["w"] == 2 and protocol["teacher"]["method"] is None
    assert protocol["paths"] == {"model": str(run), "teacher": str(run / "teacher")}
    assert results(measured)["versions"]["jax"] == jax.__version__


def test_pictures_are_kept_with_their_prompts(run, measured):
    tars = sorted((measured / "pictures" / "model_2").iterdir())
    assert [tar.name for tar in tars] == [f"{number:05d}.tar" for number in range(5)]
    with tarfile.open(tars[1]) as tar:
        assert tar.getnames()[:2] == ["000016.png", "000016.txt"] and len(tar.getnames()) == 32
        assert tar.extractfile("000017.txt").read() == b"7"
        with Image.open(tar.extractfile("000017.png")) as picture:
            found = np.asarray(picture)
    drawn = slam_jax.sample(slam_jax.load(run), [str(i % 10) for i in range(18)], 2)
    assert np.abs(found[..., :1].astype(int) - drawn[17]).max() <= 1


def test_more_steps_draw_only_these(run, real, measured, tmp_path, monkeypatch):
    out, drawn = shutil.copytree(measured, tmp_path / "out"), []
    write = parts.Parts.write
    monkeypatch.setattr(
        parts.Parts, "write", lambda s, *a: drawn.append(s.folder.name) or write(s, *a)
    )
    arguments = options(run, real, out)
    arguments[arguments.index("1,2")] = "2,4"
    evaluate.main(arguments)
    assert set(drawn) == {"model_4"}
    # What was measured before stays.
    rows = results(out)["results"]
    assert [row["steps"] for row in rows] == [1, 2, 4]
    assert rows[:2] == results(measured)["results"]


def test_pictures_that_were_not_kept_are_drawn_when_they_are_asked_for(run, real, tmp_path):
    out, short = tmp_path / "out", ["--metrics", "fd_colours_teacher", "--steps", "1"]
    arguments = [x for x in options(run, real, out) if x not in ("--reference", str(real))]
    evaluate.main([*arguments, *short])
    assert not (out / "pictures").exists()
    before = results(out)["results"]
    evaluate.main([*arguments, *short, "--save-pictures"])
    assert len(list((out / "pictures/model_1").iterdir())) == 5
    assert results(out)["results"] == before


def test_what_was_interrupted_goes_on_where_it_was(run, real, measured, tmp_path, monkeypatch):
    """Ctrl-C after three parts; the numbers are those of a measurement that nothing interrupted."""
    written, write = [], parts.Parts.write
    arguments = options(run, real, tmp_path / "out", *ONE_STEP)

    def stopping(self, number, arrays):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append((self.folder.name, number))
        write(self, number, arrays)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(parts.Parts, "write", stopping)
        evaluate.main(arguments)
    assert stopped.value.code == 130 and not (tmp_path / "out/results.json").exists()
    again = []
    monkeypatch.setattr(
        parts.Parts, "write", lambda s, n, a: again.append((s.folder.name, n)) or write(s, n, a)
    )
    evaluate.main(arguments)
    assert not set(written) & set(again)
    assert_same(results(tmp_path / "out"), results(measured))


def assert_same(found, expected):
    """In the numbers of steps that were found."""
    others = {row["steps"]: row for row in expected["results"]}
    assert found["results"]
    for row in found["results"]:
        other = others[row["steps"]]
        assert row.keys() == other.keys() and row.pop("model") == other["model"]
        for name, value in row.items():
            assert value == pytest.approx(other[name], rel=1e-5), name


def start(arguments, devices, **variables):
    """`slam-jax evaluate` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/support/colours.py"), "evaluate", *arguments],
        env={
            **os.environ,
            "JAX_NUM_CPU_DEVICES": str(devices),
            "PYTHONPATH": str(ROOT),
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def parts_in(out):
    return len(list(out.glob("features/*/*.safetensors")))


@pytest.mark.slow
def test_one_device_killed_and_two_processes_measure_the_same(run, real, measured, tmp_path):
    """SIGKILL on one device after a few parts; then two processes of two devices go on."""
    out = tmp_path / "out"
    arguments = options(run, real, out, *ONE_STEP)
    killed = start(arguments, 1)
    while killed.poll() is None and parts_in(out) < 7:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    said, _ = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, said
    assert 7 <= parts_in(out) < 15
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    two = [
        start([*arguments, "--distributed"], 2, **shared, JAX_PROCESS_ID=str(index))
        for index in range(2)
    ]
    for process in two:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert_same(results(out), results(measured))


def test_a_file_of_statistics_stands_for_its_pictures(run, real, measured, tmp_path):
    out = tmp_path / "real.npz"
    reference.main(
        [
            "--images",
            str(real),
            "--metrics",
            "fd_colours_reference",
            "--size",
            "0",
            "--out",
            str(out),
        ]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["real.npz"]
    evaluate.main(options(run, out, tmp_path / "out", *ONE_STEP))
    found, whole = results(tmp_path / "out"), results(measured)
    assert_same(found, whole)
    assert found["protocol"]["reference"]["sha256"] == whole["protocol"]["reference"]["sha256"]
    with np.load(out) as file:
        assert "colours.rows" not in file and file["colours.mean"].dtype == np.float64
    for changes, message in (
        (["--weights", "colours=3"], "colours had the sha256 .* expected"),
        (["--size", "8"], "was made with size 0, expected 8"),
    ):
        with pytest.raises(SystemExit, match=message):
            evaluate.main(options(run, out, tmp_path / f"other{changes[1]}", *changes))


def test_mean_and_covariance_of_pytorch_fid_are_read(tmp_path, capsys):
    from slam_jax.evaluation.reference import read_statistics

    rows = np.random.default_rng(0).standard_normal((2100, 2048))
    np.savez(tmp_path / "a.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    real = read_statistics(tmp_path / "a.npz", {"inception": {}}, 256)
    distance = frechet_distance(real.features["inception"].moments, moments_of([rows + 0.1]))
    assert distance == pytest.approx(2048 * 0.1**2, rel=1e-6)
    assert "does not say how its pictures were resized" in capsys.readouterr().err
    with pytest.raises(ValueError, match="serves no metric but FID"):
        read_statistics(tmp_path / "a.npz", {"clip_l14": {}}, 256)
