"""Progress of a run: one live bar on a terminal, plain lines in a batch log."""

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger(__name__)


class Progress:
    """One live bar on a terminal, plain lines in a batch log; silent on processes other than 0."""

    def __init__(self, start_step: int, num_steps: int, *, active: bool = True):
        self._num_steps = num_steps
        self._active = active
        self.restart(start_step)
        bar = active and sys.stderr.isatty()
        self._bar = tqdm(total=num_steps, initial=start_step, unit="step") if bar else None

    def restart(self, step: int) -> None:
        """Starts estimating the remaining time from this step."""
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
        """Logs a line without breaking the bar."""
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
