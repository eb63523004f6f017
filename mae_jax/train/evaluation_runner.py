"""Runs evaluations during training: when they are due, their metrics, figures, interruptions."""

import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from mae_jax.checkpoint.best import lower_is_better
from mae_jax.distributed import collectives
from mae_jax.runtime import compilation_cache, watchdog, workdir
from mae_jax.runtime.errors import UsageError, require
from mae_jax.runtime.preemption import Interrupted, StopRequest
from mae_jax.train.metric_writer import MetricWriter
from mae_jax.train.progress import Progress
from mae_jax.train.task import Task
from mae_jax.train.throughput import ThroughputMeter


def check_keep_best(task: Task, metric: str) -> None:
    """Checks that a task writes the metric of `checkpoint.keep_best`.

    A task whose evaluators do not list their `scores` is checked at its first evaluation.

    Raises:
      UsageError: it does not, or the name does not tell which values are better.
    """
    if not metric:
        return
    flag = f"--config.checkpoint.keep_best={metric}"
    off = "--config.checkpoint.keep_best= keeps none"
    require(task.num_steps > 0, f"{flag}: this run trains nothing and saves nothing; {off}")
    split, name = metric.split("/")
    active = {key: each for key, each in task.evaluators.items() if each.every > 0}
    require(
        split in active or split not in task.evaluators,
        f"{flag}: {split} is never evaluated; set --config."
        f"{'eval_every' if split == 'eval' else f'eval.{split}_every'}, or {off}",
    )
    listed = [f"{key}/{score}" for key, each in active.items() for score in each.scores]
    if split not in active or (active[split].scores and name not in active[split].scores):
        choices = f"one of {', '.join(listed)}" if listed else "a metric of an evaluation"
        raise UsageError(f"{flag}: this run has no such metric; it must be {choices} ({off})")
    require(
        lower_is_better(metric) is not None,
        f"{flag}: the name does not tell whether higher is better; it must end in loss, error, "
        "top1, accuracy, AP, mIoU or the like",
    )


class EvaluationRunner:
    """Runs a task's evaluators and draws its figure.

    Args:
      task: provides the evaluators and the figure.
      mesh: the devices.
      figure_every: steps between two figures; 0 draws none.
      stop: polled after every evaluated batch.
      writer, progress: receive the results.
      meter: excludes the time that evaluations take.
      is_best: function (step, metrics by split) -> whether the step is the best so far.
    """

    def __init__(
        self,
        task: Task,
        mesh: Mesh,
        figure_every: int,
        *,
        stop: StopRequest,
        writer: MetricWriter,
        progress: Progress,
        meter: ThroughputMeter,
        is_best: Callable[[int, dict[str, dict[str, float]]], bool] = lambda step, metrics: False,
    ):
        self._task, self._mesh, self._figure_every = task, mesh, figure_every
        self._stop, self._writer, self._progress, self._meter = stop, writer, progress, meter
        self._is_best = is_best
        self._compiled = False

    def due(self, step: int) -> bool:
        """Whether anything is to be evaluated or drawn after this step."""
        every = [evaluator.every for evaluator in self._task.evaluators.values()]
        return any(self._is_due(n, step) for n in [*every, self._figure_every])

    def run(self, state: Any, step: int) -> bool:
        """Computes, writes and logs the held-out metrics and the figure that are due.

        Returns:
          False if a stop request or unreadable data interrupted it; nothing is written then.
        """
        jax.block_until_ready(state)  # the pause does not include earlier steps
        began, image = time.perf_counter(), None
        if not self._compiled and self.due(step):
            self._progress.message(f"compiling the evaluation; {compilation_cache.advice()}")
            self._compiled = True
        try:
            with watchdog.phase("evaluate"):
                metrics = self._run_evaluators(state, step)
            if self._is_due(self._figure_every, step):
                with watchdog.phase("figure"):
                    image = self._task.figure(state, self._mesh)
        except Interrupted:
            return False
        if any(collectives.all_gather(self._task.reading_error is not None)):
            return False  # some images are missing from the metrics
        self._write_metrics(metrics, step)
        if self._is_best(step, metrics):
            self._progress.message(f"step {step} is the best so far: its checkpoint is kept")
        if image is not None:
            self._write_figure(image, step)
        self._meter.add_pause(time.perf_counter() - began)
        return True

    def _is_due(self, every: int, step: int) -> bool:
        return every > 0 and (step % every == 0 or step == self._task.num_steps)

    def _poll_stop(self) -> None:
        """Called between two batches."""
        watchdog.heartbeat()
        if self._stop.poll():
            raise Interrupted

    def _run_evaluators(self, state: Any, step: int) -> dict[str, dict[str, float]]:
        return {
            split: evaluator.run(state, self._mesh, self._poll_stop)
            for split, evaluator in self._task.evaluators.items()
            if self._is_due(evaluator.every, step)
        }

    def _write_metrics(self, metrics: dict[str, dict[str, float]], step: int) -> None:
        for split, values in metrics.items():
            self._writer.write(step, split, {"epoch": step / self._task.steps_per_epoch} | values)
            text = " ".join(f"{k} {v:.4g}" for k, v in values.items())
            self._progress.message(f"{split} at step {step}: {text}")

    def _write_figure(self, image: Any, step: int) -> None:
        workdir.ensure_held(now=True)
        self._writer.write_image(step, "picture", image)
        if jax.process_index() == 0:
            with self._writer.tolerate_write_errors():
                self._progress.message(f"figure: {self._task.save_figure(image, step)}")
