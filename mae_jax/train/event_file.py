"""Writes TensorBoard event files in the caller's thread: no background thread can die or block."""

import os
import socket
import struct
import time
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from mae_jax.train.record_file import RecordFile

_VERSION = "brain.Event:2"  # of the format
_PROTO: Any = event_pb2  # its classes are created at import


class EventFile:
    """A new event file.

    Args:
      folder: TensorBoard's log folder; created if missing.
      purge_step: TensorBoard ignores this step and later ones in earlier files.

    Attributes:
      records: the file.
    """

    def __init__(self, folder: str, *, purge_step: int | None = None):
        os.makedirs(folder, exist_ok=True)
        now = time.time_ns()  # two files may be created in the same second
        name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now % 10**9}"
        first = _record(file_version=_VERSION)
        if purge_step is not None:
            start = _PROTO.SessionLog(status=_PROTO.SessionLog.START)
            first += _record(step=purge_step, session_log=start)
        self.records = RecordFile(os.path.join(folder, name), first)

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Appends the numbers of a step, by name. On OSError they are written later."""
        parts = (summary.scalar(name, value) for name, value in values.items())
        self.records.append(b"".join(_record(step=step, summary=part) for part in parts))

    def add_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Appends a uint8 [H, W, 3] image. On OSError it is written later."""
        part = summary.image(name, image, dataformats="HWC")
        self.records.append(_record(step=step, summary=part))


def _record(**fields: Any) -> bytes:
    """An event as a TFRecord: length, checksum of the length, content, checksum of the content."""
    content = _PROTO.Event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack("<Q", len(content))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(sums) + content + next(sums)
