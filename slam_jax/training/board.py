"""The metrics and pictures of a run for TensorBoard, in its own files.

They are written at once and by this thread: tensorboardX's own writer has one that dies with a
traceback when the disk is full, and nobody hears of it.
"""

import socket
import struct
import time
from pathlib import Path
from typing import Any

PNG_SIZE = slice(16, 24)  # of a PNG, where width and height are


class Board:
    """One file of events; rows after `step`, which an earlier start wrote, are not shown any more.

    Args:
      folder: for the file; made when it is missing.
      step: of the newest checkpoint.

    Raises:
      OSError: it cannot be written.
    """

    def __init__(self, folder: Path, step: int):
        # Here, since it imports torch where that is installed: seconds, while the devices compute.
        from tensorboardX import record_writer
        from tensorboardX.proto import event_pb2, summary_pb2

        events: Any = event_pb2  # whose classes are made when they are imported
        summaries: Any = summary_pb2
        self._crc, self._event = record_writer.masked_crc32c, events.Event
        self._summary = summaries.Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.3f}.{socket.gethostname()}"
        self._file = (folder / name).open("wb", buffering=0)
        self._write(file_version="brain.Event:2")
        start = events.SessionLog(status=events.SessionLog.START)
        self._write(step=step + 1, session_log=start)

    def add(self, step: int, values: dict[str, float], picture: Path | None) -> None:
        """Writes a row of metrics, and the step ladder where there is one.

        Args:
          step: of the row.
          values: name -> metric.
          picture: a PNG.

        Raises:
          OSError: it cannot be written.
        """
        kind = self._summary.Value
        found = [kind(tag=name, simple_value=value) for name, value in values.items()]
        if picture is not None:
            content = picture.read_bytes()
            width, height = struct.unpack(">II", content[PNG_SIZE])
            image = self._summary.Image(
                width=width, height=height, colorspace=3, encoded_image_string=content
            )
            found.append(kind(tag="ladder", image=image))
        self._write(step=step, summary=self._summary(value=found))

    def close(self) -> None:
        self._file.close()

    def _write(self, **event: Any) -> None:
        """An event as a record: its length and the length's checksum, itself and its checksum."""
        data = self._event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", self._crc(part)) for part in (length, data))
        self._file.write(length + next(sums) + data + next(sums))
