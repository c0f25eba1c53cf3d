"""A run in Weights & Biases, by the real package without a network: what its own files say."""

import json
import struct
import sys
import time

import numpy as np
import pytest
from digits_runs import launch
from test_loop import read_metrics, run_loop

from slam_jax.base.errors import InputError
from slam_jax.drawing import pictures
from slam_jax.training.wandb_log import Wandb, WandbLog, check_wandb
from slam_jax.training.workdir import ladder_file

TO = Wandb("a_project", "a_name", {"training": {"steps": 8}})


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def records(content, block=32768):
    """Those of a file of wandb: seven bytes, then a LevelDB log, whose records have a head of four
    bytes of checksum, two of length and one that says which part of a record it is."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # too little is left of the block for a head
            at += block - at % block
            continue
        length, part = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # all of it, or its end
            yield parts
            parts = b""


def logged(workdir):
    """What each start of a run logged: (id of the run, its rows)."""
    starts = []
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        number, rows = "", []
        for record in finished(path):
            if record.WhichOneof("record_type") == "run":
                number = record.run.run_id
                assert (record.run.project, record.run.display_name) == (TO.project, TO.name)
            elif record.WhichOneof("record_type") == "history":
                row = {}
                for item in record.history.item:
                    *groups, name = item.nested_key or [item.key]
                    group = row.setdefault(groups[0], {}) if groups else row
                    group[name] = json.loads(item.value_json)
                rows.append(row)
        starts.append((number, rows))
    return starts


def finished(path):
    """The records of a file, as soon as it ends: wandb writes while we go on."""
    from wandb.proto.wandb_internal_pb2 import Record

    for _ in range(300):
        found = [Record.FromString(data) for data in records(path.read_bytes())]
        if found and found[-1].WhichOneof("record_type") in ("exit", "footer"):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end: {[one.WhichOneof('record_type') for one in found]}")


def draw(workdir):
    """Pictures of a ladder, and what was measured of them."""

    def save(state, step):
        pictures.save(
            pictures.sheet([np.zeros((8, 8, 1), np.uint8)], 1), ladder_file(workdir, step)
        )
        return {"rmse_to_teacher_4": 1 / step}

    return save


@pytest.mark.slow
def test_a_run_that_goes_on_is_one_run_with_each_row_once(tmp_path, offline):
    options = dict(wandb=TO, sample_every=4, draw_samples=draw(tmp_path))
    run_loop(tmp_path, steps=4, **options)
    with (tmp_path / "metrics.jsonl").open("a") as file:  # killed after the checkpoint of step 4
        file.write('{"step": 6, "loss": 0}\n')
    run_loop(tmp_path, steps=10, **options)
    (first, before), (second, after) = logged(tmp_path)
    assert first == second == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert [row["_step"] for row in before] == [2, 4]
    assert [row["_step"] for row in after] == [8, 10]  # 6 was there already
    written = {row.pop("step"): row for row in read_metrics(tmp_path)}
    assert set(written) == {2, 4, 6, 8, 10}
    for row in (*before, *after):
        expected = written[row["_step"]]
        assert {name: row[name] for name in expected} == expected
        assert ("ladder" in row) == (row["_step"] % 4 == 0)
    ladder = before[1]["ladder"]
    assert (ladder["_type"], ladder["width"], ladder["height"]) == ("image-file", 8, 8)


@pytest.mark.slow
def test_another_project_gets_a_run_of_its_own(tmp_path, offline):
    (tmp_path / "wandb.json").write_text('{"project": "another", "id": "abcdefgh"}')
    log = WandbLog(tmp_path, TO, logged=4)
    log.add(2, {"loss": 1.0}, None)
    log.close()
    ((number, rows),) = logged(tmp_path)
    assert number != "abcdefgh" and [row["_step"] for row in rows] == [2]


def test_a_missing_package_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    check_wandb("")
    with pytest.raises(SystemExit) as exit_:
        launch(tmp_path / "run", "--config.wandb_project=mine")
    said = str(exit_.value)
    assert "config.wandb_project = 'mine'" in said and "pip install 'slam_jax[wandb]'" in said
    assert "\n" not in said and not (tmp_path / "run").exists()


def test_what_wandb_refuses_is_one_line(tmp_path, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(InputError, match=r"No API key configured. Use `wandb login`.; set WANDB_"):
        WandbLog(tmp_path, TO, 0)
    assert not (tmp_path / "wandb.json").exists()
