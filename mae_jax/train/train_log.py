"""The "train" lines of the metrics: the numbers of a step and the speed."""

import logging

from mae_jax.data.tolerant import FallibleBatches
from mae_jax.train.metric_writer import MetricWriter
from mae_jax.train.nan_guard import NanGuard
from mae_jax.train.progress import Progress
from mae_jax.train.task import Batch
from mae_jax.train.throughput import InputBoundWarning, ThroughputMeter

NOT_WRITTEN = ("skipped", "absent")  # counted instead


class TrainLog:
    """Writes the metrics of a step one step later, when they are ready, so that no device waits.

    Args:
      writer: receives all numbers.
      progress: shows the most important ones.
      meter: measures the speed between two lines.
      guard: counts the skipped updates.
      batch_size: of the run.
      steps_per_epoch: of the run.
    """

    def __init__(
        self,
        writer: MetricWriter,
        progress: Progress,
        meter: ThroughputMeter,
        guard: NanGuard,
        *,
        batch_size: int,
        steps_per_epoch: float,
    ):
        self._writer, self._progress, self._meter, self._guard = writer, progress, meter, guard
        self._steps_per_epoch = steps_per_epoch
        self._input_warning = InputBoundWarning(batch_size=batch_size)
        self._pending: tuple[int, Batch] | None = None

    def add(self, step: int, metrics: Batch) -> None:
        """Stores the metrics of a step for the next `log_pending`."""
        self._pending = (step, metrics)

    def log_pending(self, batches: FallibleBatches) -> None:
        """Writes the metrics that were added, if any, once they are computed.

        Args:
          batches: batches of the run; their number of bad images is written.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        if float(metrics["absent"]):
            return
        numbers = {k: float(value) for k, value in metrics.items() if k not in NOT_WRITTEN}
        speed = self._meter.report()
        epoch = {"epoch": step / self._steps_per_epoch}
        counts = {"bad_images": batches.bad_count, "skipped_updates": self._guard.total}
        self._writer.write(step, "train", epoch | numbers | counts | speed)
        warning = self._input_warning.judge(**self._meter.window._asdict())
        if warning:
            self._progress.message(warning, logging.WARNING)
        self._progress.log(step, numbers | speed)
