"""Says so when steps wait for their data, and what helps."""

LIMIT = 0.2  # of the time
WORSE = 0.2  # more of the time than when it was last said
MIN_STEPS = 10  # fewer say little: one slow batch is no bottleneck

REMEDIES = (
    "more --config.data.workers or --config.data.prefetch, --config.data.cache=encoded, "
    "--config.data.resident=True (small sets), smaller images on disk; "
    "`python -m mae_jax.tools.bench data` measures the input alone"
)


class DataWait:
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
