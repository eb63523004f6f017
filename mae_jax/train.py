"""The training loop. It knows no model and no task: both come in as a `Task`.

Order of a start: see `start`.
Order of a step: next batch, step, log, evaluate, save.
"""

import collections
import contextlib
import logging
import math
import time
from typing import Any

import jax
from jax.sharding import Mesh

from mae_jax import checkpoint, distributed, metrics, run_info, sharding
from mae_jax.data_wait import DataWait
from mae_jax.prefetch import Prefetch
from mae_jax.start import check_workdir, start_state
from mae_jax.state import TrainState, abstract_state
from mae_jax.task import Batch, Task
from mae_jax.train_step import make_train_step

log = logging.getLogger(__name__)

IN_FLIGHT = 2  # steps the host may run ahead of the device


def run(task: Task, config: Any, workdir: str, *, allow_config_change: bool = False) -> bool:
    """Trains to the end, or until asked to stop.

    Args:
      task: what to train.
      config: the whole configuration.
      workdir: folder of the run; what it holds is continued.
      allow_config_change: continue although the configuration changed.

    Returns:
      True when all steps are done, False when a signal stopped the run after a save.

    Raises:
      UsageError: the workdir's run had another configuration, or a start point does not fit.
      FloatingPointError: the loss is not finite.
    """
    mesh = sharding.make_mesh(**config.mesh)
    # What runs in the background is ended latest first.
    with distributed.stop_on_signals() as stop, contextlib.ExitStack() as closing:
        saver = checkpoint.Checkpointer(
            workdir, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every
        )
        closing.callback(saver.close)
        check_workdir(task, saver, allow_config_change)
        run_info.announce(workdir, config, task.facts())
        abstract = abstract_state(task, mesh)
        state, provenance = start_state(task, config, workdir, saver, abstract, allow_config_change)
        loop = _Loop(task, config, workdir, mesh, saver, abstract, provenance)
        return loop.run(state, stop, closing)


class _Loop:
    """The loop's parts and what it remembers between steps."""

    def __init__(
        self,
        task: Task,
        config: Any,
        workdir: str,
        mesh: Mesh,
        saver: checkpoint.Checkpointer,
        abstract: TrainState,
        provenance: dict[str, Any],
    ):
        self.task, self.config, self.mesh, self.saver = task, config, mesh, saver
        self.workdir, self.provenance = workdir, provenance
        self.step_fn = make_train_step(
            task, abstract, mesh, seed=config.seed, grad_accum=config.grad_accum
        )
        self.watch = metrics.Stopwatch(
            batch_size=config.batch_size, flops_per_image=task.flops_per_image
        )
        self.data_wait = DataWait(batch_size=config.batch_size)
        self.pending: tuple[int, Batch] | None = None
        self.saved_at = time.monotonic()

    def run(
        self, state: TrainState, stop: distributed.StopRequest, closing: contextlib.ExitStack
    ) -> bool:
        """Runs the steps that are left; True when all are done."""
        config, task = self.config, self.task
        first, last = int(state.step), task.num_steps
        chief = jax.process_index() == 0
        self.writer = metrics.MetricWriter(self.workdir, first, active=chief)
        self.progress = metrics.Progress(first, last, active=chief)
        closing.callback(self.writer.close)
        closing.callback(self.progress.close)
        if first == 0:
            self._look(state, 0)
        if first >= last:
            left = f"step {first} of {last}: nothing left to do"
            self.progress.message(left if last else f"done: {self.workdir}")
            return True
        self.batches = task.train_batches(first)
        closing.callback(self.batches.close)
        feed = Prefetch(self.batches, self.mesh)
        closing.callback(feed.close)
        began, in_flight = time.perf_counter(), collections.deque()
        for step in range(first + 1, last + 1):
            batch, waited = feed.take(lambda: bool(in_flight) and not _done(in_flight[-1]))
            self.watch.add_step(waited)
            state, values = self.step_fn(state, batch)
            in_flight.append(values)
            if len(in_flight) > IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
            if step == first + 1:
                jax.block_until_ready(values)
                self.progress.message(
                    f"first step after {time.perf_counter() - began:.1f} s of reading and compiling"
                )
                self.watch.restart()
                self.progress.restart(step)
            self.progress.step()
            self._flush()
            stopping = stop.at(step)
            if step % config.log_every == 0 or step == last:
                self.pending = (step, values)
            if self._look_due(step):
                self._flush()
                self._look(state, step)
            if stopping or step == last or self._save_due(step):
                self._flush()
                self._save(state, values)
            if stopping:
                break
        self.saver.wait()
        done = int(state.step) == last
        again = f"stopped after step {int(state.step)}, which is saved: the same command continues"
        self.progress.message(f"done: {self.workdir}" if done else again)
        return done

    def _flush(self) -> None:
        """Writes the numbers of an earlier step, by now ready, so that the device never waits."""
        if self.pending is None:
            return
        (step, values), self.pending = self.pending, None
        numbers = {name: float(value) for name, value in values.items()}
        speed = self.watch.report()
        epoch = {"epoch": step / self.task.steps_per_epoch}
        bad = {"bad_images": self.batches.bad_count}
        _check_finite(step, numbers)
        self.writer.write(step, "train", epoch | numbers | bad | speed)
        warning = self.data_wait.judge(**self.watch.window._asdict())
        if warning:
            self.progress.message(warning, logging.WARNING)
        shown = ("loss", "baseline_loss", "top1", "lr", "images_per_s", "data_wait_ms", "mfu")
        self.progress.log(step, {k: v for k, v in (numbers | speed).items() if k in shown})

    def _due(self, every: int, step: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.task.num_steps)

    def _look_due(self, step: int) -> bool:
        every = [evaluator.every for evaluator in self.task.evaluators.values()]
        return any(self._due(n, step) for n in [*every, self.config.picture_every])

    def _look(self, state: TrainState, step: int) -> None:
        """Held-out metrics and a picture, whichever is due."""
        jax.block_until_ready(state)  # the steps before are not part of the pause
        began = time.perf_counter()
        for split, evaluator in self.task.evaluators.items():
            if self._due(evaluator.every, step):
                values = evaluator.run(state, self.mesh)
                self.writer.write(step, split, {"epoch": step / self.task.steps_per_epoch} | values)
                text = " ".join(f"{k} {v:.4g}" for k, v in values.items())
                self.progress.message(f"{split} at step {step}: {text}")
        if self._due(self.config.picture_every, step):
            image = self.task.picture(state, self.mesh)
            self.writer.write_image(step, "picture", image)
            if jax.process_index() == 0:
                self.progress.message(f"picture: {self.task.save_picture(image, step)}")
        self.watch.add_pause(time.perf_counter() - began)

    def _save_due(self, step: int) -> bool:
        every = self.config.checkpoint
        if any(n and step % n == 0 for n in (every.every_steps, every.keep_every)):
            return True
        if not every.every_minutes or step % self.config.log_every:
            return False
        return distributed.agree(time.monotonic() - self.saved_at > 60 * every.every_minutes)

    def _save(self, state: TrainState, values: Batch) -> None:
        """Starts a checkpoint, unless the state is spoilt."""
        step = int(state.step)
        _check_finite(step, {name: float(value) for name, value in values.items()})
        began = time.perf_counter()
        more = {"provenance": self.provenance} if self.provenance else {}
        self.saver.save(state, self.task.metadata(step) | more)
        self.saved_at = time.monotonic()
        self.watch.add_pause(time.perf_counter() - began)


def _done(values: dict[str, Any]) -> bool:
    """Whether the step that these come from is over."""
    return all(value.is_ready() for value in values.values())


def _check_finite(step: int, values: dict[str, float]) -> None:
    """Official behaviour: a loss that is not finite ends the run, before it reaches the disk."""
    bad = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(
            f"{', '.join(bad)} at step {step}; the last checkpoint is untouched. Remedies: a lower "
            "--config.optim.base_lr, --config.optim.grad_clip=1.0, --config.model.dtype=float32, "
            "each with --allow_config_change"
        )
