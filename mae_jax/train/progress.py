"""Progress of a run: one live bar on a terminal, plain lines in a batch log."""

import logging
import shutil
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from mae_jax.runtime.text import duration
from mae_jax.train import progress_line
from mae_jax.train.progress_line import Field

log = logging.getLogger(__name__)

COLUMNS = 80
LINE = COLUMNS - len("HH:MM:SS ")  # the log starts every line with the time
BAR = 8  # columns of the bar, at least
# The first estimate of the remaining time needs this many steps and seconds, or the seconds of
# ENOUGH. It skips the first steps after compilation, in which the host runs ahead of the devices.
SKIPPED_STEPS, ESTIMATE_STEPS, ESTIMATE_SECONDS, ENOUGH = 3, 10, 5.0, 30.0
LONG = 3600.0  # seconds; the quick setting of a recipe is recommended to longer runs


class Progress:
    """One live bar on a terminal, plain lines in a batch log; silent on processes other than 0.

    Args:
      start_step: number of completed steps.
      num_steps: of the whole run.
      clock: returns seconds, and stands still between steps.
      first_look: flag of the recipe's quick setting, or "".
      active: False on processes other than 0.
    """

    def __init__(
        self,
        start_step: int,
        num_steps: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
        first_look: str = "",
        active: bool = True,
    ):
        self._num_steps, self._clock, self._first_look = num_steps, clock, first_look
        self._active = active
        self._step = start_step
        self._estimated = False
        self.restart()
        self._bar = _bar(start_step, num_steps) if active and sys.stderr.isatty() else None

    def restart(self) -> None:
        """Starts measuring the speed after the current step."""
        self._logged = (self._step, self._clock())
        self._measured: tuple[int, float] | None = None
        self._restarted = self._step

    def step(self) -> None:
        """Counts a step."""
        self._step += 1
        if self._bar is not None:
            self._bar.update()
        if not self._estimated:
            self._estimate()

    def _estimate(self) -> None:
        """Logs once, as soon as the speed is known, how long the remaining steps take."""
        now = self._clock()
        if self._measured is None:
            if self._step >= self._restarted + SKIPPED_STEPS:
                self._measured = (self._step, now)
            return
        step, began = self._measured
        steps, seconds, left = self._step - step, now - began, self._num_steps - self._step
        known = seconds >= (ESTIMATE_SECONDS if steps >= ESTIMATE_STEPS else ENOUGH)
        if not known or left <= 0:
            return
        self._estimated = True
        total = left * seconds / steps
        self.message(
            f"at this speed the remaining {left:,} steps take {duration(total)} on this machine"
        )
        if total > LONG and self._first_look:
            self.message(f"(for a first look: {self._first_look})")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Shows the most important numbers of a step."""
        if not self._active:
            return
        before, then = self._logged
        self._logged = (step, self._clock())
        left = (self._num_steps - step) * (self._logged[1] - then) / max(step - before, 1)
        fields = progress_line.fields(values, tqdm.format_interval(left))
        total = self._num_steps
        if self._bar is None:
            fields = [Field(0, f"step {step}/{total}"), *fields]
            log.info("%s", progress_line.fit(fields, LINE))
        else:
            used = len(f"100%|| {total}/{total}, ") + BAR
            self._bar.set_postfix_str(progress_line.fit(fields, self._bar.ncols - used))

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


def _bar(start_step: int, num_steps: int) -> tqdm:
    """A bar without tqdm's own estimate, which would include compilation and evaluations."""
    return tqdm(
        total=num_steps,
        initial=start_step,
        ncols=min(COLUMNS, shutil.get_terminal_size().columns),
        bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
    )
