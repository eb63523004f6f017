"""Says so when steps wait for their data, and what helps."""

import time
from typing import Any, NamedTuple

import jax

LIMIT = 0.2  # of the time
WORSE = 0.2  # more of the time than when it was last said
MIN_STEPS = 10  # fewer say little: one slow batch is no bottleneck
REMEDIES = (
    "more --config.data.workers or --config.data.prefetch, --config.data.cache=encoded, "
    "--config.data.on_device=True (small sets), smaller images on disk; "
    "`python -m mae_jax.tools.bench data` measures the input alone"
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
    """Judges the windows of a run one after the other, the first one excepted: it fills caches."""

    def __init__(self, *, batch_size: int):
        self._batch_size = batch_size
        self._first = True
        self._said = 0.0
        self._clear()

    def _clear(self) -> None:
        self._waited, self._total, self._steps = 0.0, 0.0, 0

    def judge(self, *, waited: float, total: float, steps: int) -> str | None:
        """One line if the data are the bottleneck and that is news.

        Args:
          waited: seconds of `total` in which the devices had no batch to work on.
          total: seconds that the steps of the window took.
          steps: their number; windows below MIN_STEPS are put together.
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
        if first or share <= (self._said + WORSE if self._said else LIMIT):
            return None
        self._said = share
        could = f"{rate / (1 - share):.4g}" if share < 0.99 else "far more"
        return (
            f"the devices wait for data {share:.0%} of the time: the input makes {rate:.4g} "
            f"images/s, the steps could use {could}. Remedies: {REMEDIES}"
        )


def peak_flops(device: Any) -> float | None:
    """Peak bf16 FLOP/s of a device, or None where we do not know it."""
    kind = device.device_kind
    matches = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


class Window(NamedTuple):
    """Some steps: how many, and the seconds they took and waited for data."""

    steps: int = 0
    total: float = 0.0
    waited: float = 0.0


class ThroughputMeter:
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
