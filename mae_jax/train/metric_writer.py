"""Where numbers go: metrics.jsonl (the truth), TensorBoard, and one line or bar for the person."""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from mae_jax.runtime import disk, filesystem
from mae_jax.runtime.bucket_mirror import BucketMirror
from mae_jax.train.event_file import EventFile
from mae_jax.train.record_file import RecordFile

log = logging.getLogger(__name__)
FILE = "metrics.jsonl"
BOARD_BYTES = 2**24  # of pictures, after which a TensorBoard file that must be copied is ended


class MetricWriter:
    """Appends metrics of a run; only process 0 writes.

    Lines after `start_step` are removed first: they belong to steps that will be done again. A disk
    that is full or fails never ends or delays the run: there is one warning, metrics wait in
    memory, and are written when that is possible again.
    """

    def __init__(self, workdir: str, start_step: int, *, active: bool = True):
        self._active, self._told = active, False
        if not active:
            return
        self._growing = BucketMirror(workdir, FILE)
        path = os.path.join(self._growing.folder, FILE)
        _truncate(path, start_step)
        self._lines = RecordFile(path)
        self._board_folder = os.path.join(self._growing.folder, "tensorboard")
        self._board = EventFile(self._board_folder, purge_step=start_step + 1)
        self._image_bytes = 0

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Appends one line {"step", "split", **values} and the same to TensorBoard.

        Numbers that are not finite are null in the line: JSON has no other word for them.
        """
        if not self._active:
            return
        values = {name: None if _not_finite(value) else value for name, value in values.items()}
        line = {"step": step, "split": split, **values}
        numbers = {f"{split}/{name}": x for name, x in values.items() if x is not None}
        with self.disk_may_be_full():
            self._lines.append(json.dumps(line, allow_nan=False).encode() + b"\n")
        with self.disk_may_be_full():
            self._board.add_scalars(step, numbers)
        if self._told and not self._waiting():
            log.info("metrics are written again")
            self._told = False

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a uint8 [H, W, 3] image to TensorBoard."""
        if self._active:
            with self.disk_may_be_full():
                self._board.add_image(step, name, image)
            self._image_bytes += image.nbytes

    @contextlib.contextmanager
    def disk_may_be_full(self) -> Iterator[None]:
        """Metrics and pictures that cannot be written do not end a run; the first is told."""
        try:
            yield
        except OSError as error:
            if not self._told:
                line = disk.error_line(error, self._growing.folder)
                log.warning("metrics or pictures cannot be written: %s; the run continues", line)
            self._told = True

    def secure(self) -> None:
        """Before a checkpoint is written: the next start then finds the lines up to it."""
        if self._active:
            self._flush()
            full = self._image_bytes > BOARD_BYTES and not self._board.records.waiting
            if self._growing.copies and full:
                self._board, self._image_bytes = EventFile(self._board_folder), 0
            self._growing.copy()

    def close(self) -> None:
        """Writes what waits; what cannot be written even now is lost, with a warning."""
        if self._active:
            self._flush()
            if self._waiting() or self._lines.lost:
                log.warning("the last metrics are not in %s", self._growing.folder)
            self._growing.close()

    def _flush(self) -> None:
        for records in (self._lines, self._board.records):
            with self.disk_may_be_full():
                records.flush()

    def _waiting(self) -> bool:
        return self._lines.waiting or self._board.records.waiting


def read(workdir: str) -> Iterator[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl.

    Raises:
      FileNotFoundError: it has none.
    """
    content = filesystem.read(os.path.join(workdir, FILE)).decode()
    return filter(None, map(parse_line, content.splitlines(keepends=True)))


def parse_line(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is not whole: still being written, or cut off once."""
    try:
        values = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return values if isinstance(values, dict) and {"step", "split"} <= values.keys() else None


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _truncate(path: str, last_step: int) -> None:
    """Keeps the lines of steps up to `last_step`; what was written by halves goes.

    Without a step done nothing is kept: the line of step 0 is written again.
    """
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        content = file.read()
    kept = b"".join(
        line
        for line in content.splitlines(keepends=True)
        if last_step
        and (values := parse_line(line.decode(errors="replace")))
        and values["step"] <= last_step
    )
    if content.startswith(kept):
        os.truncate(path, len(kept))  # takes no room, of which there may be none
    else:
        filesystem.write(path, kept)
