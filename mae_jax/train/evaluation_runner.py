"""Runs evaluations during training: when they are due, their metrics, figures, interruptions."""

import time
from typing import Any

import jax
from jax.sharding import Mesh

from mae_jax.distributed import collectives
from mae_jax.runtime import compilation_cache, watchdog, workdir
from mae_jax.runtime.preemption import Interrupted, StopRequest
from mae_jax.train.metric_writer import MetricWriter
from mae_jax.train.progress import Progress
from mae_jax.train.task import Task
from mae_jax.train.throughput import ThroughputMeter


class EvaluationRunner:
    """Runs a task's evaluators and draws its figure.

    Args:
      task: provides the evaluators and the figure.
      mesh: the devices.
      figure_every: steps between two figures; 0 draws none.
      stop: polled after every evaluated batch.
      writer, progress: receive the results.
      meter: excludes the time that evaluations take.
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
    ):
        self._task, self._mesh, self._figure_every = task, mesh, figure_every
        self._stop, self._writer, self._progress, self._meter = stop, writer, progress, meter
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
