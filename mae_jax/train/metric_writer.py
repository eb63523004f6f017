"""Writes metrics to metrics.jsonl (the reference) and to TensorBoard."""

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
BOARD_BYTES = 2**24  # of images, after which a TensorBoard file that is copied to a bucket ends


class MetricWriter:
    """Appends the metrics of a run; only process 0 writes.

    Lines after `start_step` are removed first, because these steps will be repeated. A full or
    failing disk never ends or delays the run: it causes one warning, and metrics are kept in
    memory until they can be written again.
    """

    def __init__(self, workdir: str, start_step: int, *, active: bool = True):
        self._active, self._warned = active, False
        if not active:
            return
        self._mirror = BucketMirror(workdir, FILE)
        path = os.path.join(self._mirror.folder, FILE)
        _truncate(path, start_step)
        self._lines = RecordFile(path)
        self._board_folder = os.path.join(self._mirror.folder, "tensorboard")
        self._board = EventFile(self._board_folder, purge_step=start_step + 1)
        self._image_bytes = 0

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Appends one line {"step", "split", **values} and the same to TensorBoard.

        Non-finite numbers become null, because JSON cannot represent them.
        """
        if not self._active:
            return
        values = {name: None if _not_finite(value) else value for name, value in values.items()}
        line = {"step": step, "split": split, **values}
        numbers = {f"{split}/{name}": x for name, x in values.items() if x is not None}
        with self.tolerate_write_errors():
            self._lines.append(json.dumps(line, allow_nan=False).encode() + b"\n")
        with self.tolerate_write_errors():
            self._board.add_scalars(step, numbers)
        if self._warned and not self._waiting():
            log.info("metrics are written again")
            self._warned = False

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a uint8 [H, W, 3] image to TensorBoard."""
        if self._active:
            with self.tolerate_write_errors():
                self._board.add_image(step, name, image)
            self._image_bytes += image.nbytes

    @contextlib.contextmanager
    def tolerate_write_errors(self) -> Iterator[None]:
        """Context in which write errors do not end the run; the first one is logged."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                line = disk.error_line(error, self._mirror.folder)
                log.warning("metrics or figures cannot be written: %s; the run continues", line)
            self._warned = True

    def secure(self) -> None:
        """Writes everything out before a checkpoint, so that a restart finds all earlier lines."""
        if self._active:
            self._flush()
            full = self._image_bytes > BOARD_BYTES and not self._board.records.waiting
            if self._mirror.copies and full:
                self._board, self._image_bytes = EventFile(self._board_folder), 0
            self._mirror.copy()

    def close(self) -> None:
        """Writes what is still in memory; if that fails, it is lost with a warning."""
        if self._active:
            self._flush()
            if self._waiting() or self._lines.lost:
                log.warning("the last metrics are not in %s", self._mirror.folder)
            self._mirror.close()

    def _flush(self) -> None:
        for records in (self._lines, self._board.records):
            with self.tolerate_write_errors():
                records.flush()

    def _waiting(self) -> bool:
        return self._lines.waiting or self._board.records.waiting


def read(workdir: str) -> Iterator[dict[str, Any]]:
    """Yields the complete lines of a run's metrics.jsonl.

    Raises:
      FileNotFoundError: the run has no such file.
    """
    content = filesystem.read(os.path.join(workdir, FILE)).decode()
    return filter(None, map(parse_line, content.splitlines(keepends=True)))


def parse_line(line: str) -> dict[str, Any] | None:
    """Parses a line of metrics.jsonl; None if it is incomplete (being written, or cut off)."""
    try:
        values = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return values if isinstance(values, dict) and {"step", "split"} <= values.keys() else None


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _truncate(path: str, last_step: int) -> None:
    """Keeps the complete lines of steps up to `last_step`.

    If no step is done, nothing is kept, because the line of step 0 is written again.
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
        os.truncate(path, len(kept))  # needs no disk space, which may be exhausted
    else:
        filesystem.write(path, kept)
