"""What is in the file for TensorBoard, record by record; and a full disk is heard of."""

import json
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from slam_jax.base.errors import InputError
from slam_jax.config.options import default_config
from slam_jax.config.validate import freeze
from slam_jax.data.rejects import Rejects
from slam_jax.training.board import Board
from slam_jax.training.metric_log import MetricLog
from slam_jax.training.workdir import claimed, ladder_file


def events(folder):
    """The events of the one file in a folder, by the format of TFRecord."""
    (path,) = folder.iterdir()
    content, found = path.read_bytes(), []
    while content:
        length, check = content[:8], struct.unpack("<I", content[8:12])[0]
        assert check == masked_crc32c(length)
        (size,) = struct.unpack("<Q", length)
        data, check = content[12 : 12 + size], content[12 + size : 16 + size]
        assert struct.unpack("<I", check)[0] == masked_crc32c(data)
        found.append(Event.FromString(data))
        content = content[16 + size :]
    return found


def test_metrics_the_learning_rate_and_the_ladder_are_in_it(tmp_path):
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    path = ladder_file(tmp_path, 8)
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    log = MetricLog(tmp_path, 6, batch_size=4)
    step = {name: np.float32(value) for name, value in dict(loss=0.5, learning_rate=1e-3).items()}
    for number, measured in ((7, {}), (8, {"rmse_to_teacher_4": 0.25})):
        log.add({**step, "skipped": np.int32(0)})
        log.write(number, Rejects(), measured)
    log.close()
    begin, start, *rows = events(tmp_path / "tensorboard")
    assert begin.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (7, SessionLog.START)  # later rows are dropped
    assert [row.step for row in rows] == [7, 8]
    first, last = ({value.tag: value for value in row.summary.value} for row in rows)
    assert "ladder" not in first
    assert first["learning_rate"].simple_value == pytest.approx(1e-3)
    assert last["loss"].simple_value == 0.5 and last["rmse_to_teacher_4"].simple_value == 0.25
    image = last["ladder"].image
    assert (image.width, image.height) == (7, 5)
    assert image.encoded_image_string == path.read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [7, 8]


def test_a_full_disk_is_one_line_and_no_thread_speaks(tmp_path, capfd):
    run = tmp_path / "run"
    with (
        pytest.raises(InputError, match=r"run: cannot be written \(No space left.*make room"),
        claimed(run, freeze(default_config()), False),
    ):
        board = Board(run / "tensorboard", 0)
        records = board._writer._py_recordio_writer
        records.close()
        records._writer = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
        with records._writer:
            board.add(1, {"loss": 0.5}, None)
    assert capfd.readouterr().err == ""
