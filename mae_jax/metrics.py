"""Where numbers go: metrics.jsonl (the truth), TensorBoard, and one line or bar for the person."""

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from mae_jax import disk, files
from mae_jax.event_file import EventFile
from mae_jax.growing import GrowingFiles
from mae_jax.record_file import RecordFile

log = logging.getLogger(__name__)

FILE = "metrics.jsonl"
BOARD_BYTES = 2**24  # of pictures, after which a TensorBoard file that must be copied is ended

# Peak dense bf16 FLOP/s of a device, by jax's `device_kind`. NVIDIA: data sheets. TPU: the system
# architecture pages of cloud.google.com/tpu/docs; v2 and v3 per core, which is a device to jax.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "Tesla V100": 125e12,
}


def peak_flops(device: Any) -> float | None:
    """Peak bf16 FLOP/s of a device, or None where we do not know it."""
    kind = device.device_kind
    matches = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


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
        self._growing = GrowingFiles(workdir, FILE)
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
    content = files.read(os.path.join(workdir, FILE)).decode()
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
        files.write(path, kept)


class Window(NamedTuple):
    """Some steps: how many, and the seconds they took and waited for data."""

    steps: int = 0
    total: float = 0.0
    waited: float = 0.0


class Stopwatch:
    """Speed of the steps since the last report, without compilation, evaluation and saving.

    Attributes:
      window: what the last report was about.
    """

    def __init__(self, *, batch_size: int, flops_per_image: float):
        self._batch_size = batch_size
        self._flops = flops_per_image
        self.window = Window()
        self.restart()

    def restart(self) -> None:
        """Begins a new window now."""
        self._start = time.perf_counter()
        self._steps, self._paused, self._waited = 0, 0.0, 0.0

    def add_step(self, waited: float) -> None:
        """Counts a step that waited so many seconds for data."""
        self._steps += 1
        self._waited += waited

    def add_pause(self, seconds: float) -> None:
        """Leaves time out that was spent on something else than steps."""
        self._paused += seconds

    def report(self) -> dict[str, float]:
        """Speed of the window; begins the next one. Empty when there was no step."""
        seconds = time.perf_counter() - self._start - self._paused
        steps, waited = self._steps, self._waited
        self.window = Window(steps, seconds, waited)
        self.restart()
        if not steps:
            return {}
        rate = steps * self._batch_size / seconds
        values = {
            "images_per_s": rate,
            "images_per_s_per_device": rate / jax.device_count(),
            "data_wait_ms": 1000 * waited / steps,
            "data_wait": waited / seconds,
        }
        peak = peak_flops(jax.devices()[0])
        if peak is not None:
            values["mfu"] = rate * self._flops / (jax.device_count() * peak)
        return {name: float(f"{value:.4g}") for name, value in values.items()}


class Progress:
    """One live bar on a terminal, plain lines in a batch log; silent on processes other than 0."""

    def __init__(self, start_step: int, num_steps: int, *, active: bool = True):
        self._num_steps = num_steps
        self._active = active
        self.restart(start_step)
        bar = active and sys.stderr.isatty()
        self._bar = tqdm(total=num_steps, initial=start_step, unit="step") if bar else None

    def restart(self, step: int) -> None:
        """Measures the time that is left from here on."""
        self._last = (step, time.perf_counter())

    def step(self) -> None:
        """Moves the bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Shows the numbers of a step."""
        if not self._active:
            return
        text = " ".join(f"{name} {_short(value)}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text)
            return
        before, then = self._last
        self._last = (step, time.perf_counter())
        left = (self._num_steps - step) * (self._last[1] - then) / max(step - before, 1)
        eta = tqdm.format_interval(left)
        log.info("step %d/%d  %s  eta %s", step, self._num_steps, text, eta)

    def message(self, text: str, level: int = logging.INFO) -> None:
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            self._bar.clear()
        if self._active:
            log.log(level, text)

    def close(self) -> None:
        """Leaves the terminal clean."""
        if self._bar is not None:
            self._bar.close()


def _short(value: float) -> str:
    return f"{value:.3e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
