"""TensorBoard's event files, written without a thread or a process that could die or block."""

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
_PROTO: Any = event_pb2  # has its classes only when it is loaded


class EventFile:
    """A new event file in a folder, which is created when it is missing.

    Args:
      folder: where TensorBoard looks for it.
      purge_step: TensorBoard forgets what earlier files have of this step and later ones.

    Attributes:
      records: the file.
    """

    def __init__(self, folder: str, *, purge_step: int | None = None):
        os.makedirs(folder, exist_ok=True)
        now = time.time_ns()  # two files may be begun in the same second
        name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now % 10**9}"
        first = _record(file_version=_VERSION)
        if purge_step is not None:
            start = _PROTO.SessionLog(status=_PROTO.SessionLog.START)
            first += _record(step=purge_step, session_log=start)
        self.records = RecordFile(os.path.join(folder, name), first)

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Appends numbers of a step, by name; OSError: they are written later."""
        parts = (summary.scalar(name, value) for name, value in values.items())
        self.records.append(b"".join(_record(step=step, summary=part) for part in parts))

    def add_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Appends a uint8 [H, W, 3] image; OSError: it is written later."""
        part = summary.image(name, image, dataformats="HWC")
        self.records.append(_record(step=step, summary=part))


def _record(**fields: Any) -> bytes:
    """An event as a TFRecord: length, its checksum, content, its checksum."""
    content = _PROTO.Event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack("<Q", len(content))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(sums) + content + next(sums)
