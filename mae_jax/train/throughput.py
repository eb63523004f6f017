"""Speed of training, and a warning when it is limited by the input."""

import time
from typing import Any, NamedTuple

import jax

LIMIT = 0.2  # share of the time spent waiting for data that causes a warning
WORSE = 0.2  # increase of that share that causes another warning
MIN_STEPS = 10  # a single slow batch is not a bottleneck
REMEDIES = (
    "more --config.data.workers or --config.data.prefetch, --config.data.cache=encoded, "
    "--config.data.on_device=True (small sets), smaller images on disk; "
    "`python -m mae_jax.tools.bench data` measures only the input"
)
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


class InputBoundWarning:
    """Judges the windows of a run in turn, except for the first, which fills caches."""

    def __init__(self, *, batch_size: int):
        self._batch_size = batch_size
        self._first = True
        self._warned_share = 0.0
        self._clear()

    def _clear(self) -> None:
        self._waited, self._total, self._steps = 0.0, 0.0, 0

    def judge(self, *, waited: float, total: float, steps: int) -> str | None:
        """Returns a warning if the input is the bottleneck and that was not reported yet.

        Args:
          waited: seconds of `total` in which the devices had no batch.
          total: seconds that the steps of the window took.
          steps: number of steps; windows shorter than MIN_STEPS are merged.
        """
        self._waited += waited
        self._total += total
        self._steps += steps
        if self._steps < MIN_STEPS or self._total <= 0:
            return None
        share = min(self._waited / self._total, 1.0)
        rate = self._steps * self._batch_size / self._total
        first, self._first = self._first, False
        self._clear()
        if first or share <= (self._warned_share + WORSE if self._warned_share else LIMIT):
            return None
        self._warned_share = share
        possible = f"{rate / (1 - share):.4g}" if share < 0.99 else "far more"
        return (
            f"the devices wait for data {share:.0%} of the time: the input delivers {rate:.4g} "
            f"images/s, the steps could use {possible}. Remedies: {REMEDIES}"
        )


def peak_flops(device: Any) -> float | None:
    """Peak bf16 FLOP/s of a device, or None if unknown."""
    kind = device.device_kind
    matches = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


class Window(NamedTuple):
    """Number of steps, seconds they took in total, and seconds they waited for data."""

    steps: int = 0
    total: float = 0.0
    waited: float = 0.0


class ThroughputMeter:
    """Speed of the steps since the last report, excluding compilation, evaluation and saving.

    Attributes:
      window: the steps of the last report.
    """

    def __init__(self, *, batch_size: int, flops_per_image: float):
        self._batch_size = batch_size
        self._flops = flops_per_image
        self._paused = 0.0
        self.window = Window()
        self.restart()

    def clock(self) -> float:
        """A clock in seconds that stands still during pauses."""
        return time.perf_counter() - self._paused

    def restart(self) -> None:
        """Starts a new window."""
        self._start = self.clock()
        self._steps, self._waited = 0, 0.0

    def add_step(self, waited: float) -> None:
        """Counts a step that waited `waited` seconds for data."""
        self._steps += 1
        self._waited += waited

    def add_pause(self, seconds: float) -> None:
        """Excludes time spent on anything but steps."""
        self._paused += seconds

    def report(self) -> dict[str, float]:
        """Returns the speed of the window ({} without a step) and starts the next one."""
        seconds = self.clock() - self._start
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
