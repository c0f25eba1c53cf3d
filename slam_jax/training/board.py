"""The metrics and pictures of a run for TensorBoard.

They are written at once and by this thread: tensorboardX's usual writer has one that dies with a
traceback when the disk is full, and nobody hears of it.
"""

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
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        events: Any = event_pb2  # whose classes are made when they are imported
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
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
        self._writer.close()

    def _write(self, **event: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), **event))
        self._writer.flush()
