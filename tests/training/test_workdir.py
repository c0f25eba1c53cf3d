"""A workdir: one run at a time, on a disk that can be written."""

import errno
import subprocess
import sys

import pytest

from slam_jax.base import files
from slam_jax.base.errors import InputError
from slam_jax.config.options import default_config
from slam_jax.config.validate import freeze
from slam_jax.training import workdir as module
from slam_jax.training.metric_log import read_rows
from slam_jax.training.workdir import claimed

CONFIG = freeze(default_config())


def test_a_second_run_in_the_same_workdir_is_refused_until_the_first_is_killed(tmp_path):
    first = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from slam_jax.training.workdir import claimed\n"
            "from tests.training.test_workdir import CONFIG\n"
            "import sys, time; from pathlib import Path\n"
            "with claimed(Path(sys.argv[1]), CONFIG, False): print('here', flush=True); input()",
            str(tmp_path / "run"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with first:
        assert first.stdout.readline() == "here\n"
        with (
            pytest.raises(InputError, match=rf"another run is using it \(process {first.pid} on "),
            claimed(tmp_path / "run", CONFIG, True),
        ):
            pass
        first.kill()
    with claimed(tmp_path / "run", CONFIG, True):
        pass
    with (
        pytest.raises(InputError, match="holds a run; add --resume"),
        claimed(tmp_path / "run", CONFIG, False),
    ):
        pass


def test_what_a_run_that_was_killed_at_once_left_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.0123.tmp").write_text("{")
    with claimed(tmp_path, CONFIG, False):
        pass


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"file/run: cannot be written \(Not a directory\)"),
        claimed(tmp_path / "file/run", CONFIG, False),
    ):
        pass


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_said_in_one_line(tmp_path, code):
    with (
        pytest.raises(InputError, match=r"metrics\.jsonl: cannot be written \(.*make room"),
        claimed(tmp_path / "run", CONFIG, False),
    ):
        raise OSError(code, "system's words", "metrics.jsonl")
    with pytest.raises(FileNotFoundError), claimed(tmp_path / "run", CONFIG, True):
        (tmp_path / "no such file").read_text()  # a defect of ours, and shown as one


def test_processes_that_do_not_share_the_workdir_hear_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "is_main", lambda: False)
    with (
        pytest.raises(InputError, match="on a file system that all processes share"),
        claimed(tmp_path / "run", CONFIG, False),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_is_used_with_a_note(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", fail)
    with claimed(tmp_path / "run", CONFIG, False):
        pass
    assert "cannot be locked (No locks available)" in capsys.readouterr().err


def test_metrics_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be read \(Is a directory\)"):
        read_rows(tmp_path)
