"""The training loop. It knows no model and no task: both come in as a `Task`.

Order of a start: see `start`.
Order of a step: next batch, step, log, evaluate, save. A request to stop is heard between steps and
between evaluated batches; the step is saved and an evaluation that was cut short is made again when
the run goes on. Data that cannot be read end a run the same way, on all processes at the same step:
the steps without data change nothing (`data.tolerant`).
"""

import collections
import contextlib
import logging
import time
from typing import Any

import jax
from jax.sharding import Mesh

from mae_jax.checkpoint import checkpointer
from mae_jax.data import storage
from mae_jax.data.prefetch import Prefetch
from mae_jax.distributed import collectives, sharding
from mae_jax.runtime import watchdog
from mae_jax.runtime.errors import RunError, StorageUnavailable
from mae_jax.runtime.preemption import Interrupted, StopRequest
from mae_jax.runtime.workdir import ensure_held
from mae_jax.train import metric_writer, progress, run_info, throughput
from mae_jax.train.initial_state import Start, check_workdir, start_state
from mae_jax.train.nan_guard import NanGuard
from mae_jax.train.save_policy import SavePolicy
from mae_jax.train.state import TrainState, abstract_state
from mae_jax.train.step import make_train_step
from mae_jax.train.task import Batch, Task
from mae_jax.train.throughput import InputBoundWarning

log = logging.getLogger(__name__)

IN_FLIGHT = 2  # steps the host may run ahead of the device
COUNTED = ("skipped", "absent")  # metrics of a step that are not written


def run(
    task: Task,
    config: Any,
    workdir: str,
    *,
    allow_config_change: bool = False,
    stop: StopRequest | None = None,
) -> bool:
    """Trains to the end, or until asked to stop.

    Args:
      task: what to train.
      config: the whole configuration.
      workdir: folder of the run; what it holds is continued.
      allow_config_change: continue although the configuration changed.
      stop: says when to stop before the end.

    Returns:
      True when all steps are done, False when a signal stopped the run after a save.

    Raises:
      UsageError: the workdir's run had another configuration, or a start point does not fit.
      FloatingPointError: too many updates in a row were not finite.
      RunError: too many saves in a row failed.
      StorageUnavailable: after a save: the data could not be read for `data.storage_wait`.
    """
    mesh = sharding.make_mesh(**config.mesh)
    # What runs in the background is ended latest first.
    with contextlib.ExitStack() as closing:
        saver = checkpointer.Checkpointer(
            workdir, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every
        )
        closing.callback(saver.close)
        check_workdir(task, saver, allow_config_change)
        abstract = abstract_state(task, mesh)
        with watchdog.phase("restore", starting=True):
            start = start_state(task, config, workdir, saver, abstract, allow_config_change)
        log.info("%s", start.said)
        if task.num_steps == 0 or int(start.state.step) < task.num_steps:
            # Not before: a start that is refused, or has nothing to do, changes nothing.
            run_info.log_and_write(workdir, config, task.facts(), start.account)
        stop = stop or StopRequest()
        loop = _Loop(task, config, workdir, mesh, saver, abstract, start.provenance, stop)
        with watchdog.phase("train"), storage.ends_when(stop.noticed):
            return loop.run(start, closing)


class _Loop:
    """The loop's parts and what it remembers between steps."""

    def __init__(
        self,
        task: Task,
        config: Any,
        workdir: str,
        mesh: Mesh,
        saver: checkpointer.Checkpointer,
        abstract: TrainState,
        provenance: dict[str, Any],
        stop: StopRequest,
    ):
        self.task, self.config, self.mesh = task, config, mesh
        self.workdir, self.provenance = workdir, provenance
        self.step_fn = make_train_step(
            task, abstract, mesh, seed=config.seed, grad_accum=config.grad_accum
        )
        self.watch = throughput.ThroughputMeter(
            batch_size=config.batch_size, flops_per_image=task.flops_per_image
        )
        self.data_wait = InputBoundWarning(batch_size=config.batch_size)
        self.guard = NanGuard(config.nan_guard.max_skips, workdir, task.examples)
        self.stop = stop
        self.saving = SavePolicy(saver, config.checkpoint, check_every=config.log_every, stop=stop)
        self.in_flight: collections.deque[tuple[int, Batch]] = collections.deque()
        self.pending: tuple[int, Batch] | None = None
        self.absent = False  # whether a step got no data
        self.feed: Any = None

    def run(self, start: Start, closing: contextlib.ExitStack) -> bool:
        """Runs the steps that are left; True when all are done.

        Args:
          start: where to begin.
          closing: ends what runs in the background.
        """
        state = start.state
        first, last = self.first, _ = int(state.step), self.task.num_steps
        self._open(first, closing)
        if (first == 0 or start.look_again) and not self._look(state, first):
            return self._stopped(first)
        if first >= last:
            left = f"step {first} of {last}: nothing left to do"
            self.progress.message(left if last else f"done: {self.workdir}")
            return True
        self._start_feed(first, closing)
        for step in range(first + 1, last + 1):
            if step > first + 1:
                state, values = self._step(state, step)
            else:
                state, values = self._first_step(state, step)
            ensure_held()
            self._flush()
            asked, looked = self.stop.poll(), True
            if step % self.config.log_every == 0 or step == last:
                self.pending = (step, values)
            looking = self._look_due(step)
            if asked or looking or step == last:
                self._look_at_steps()
            stopping = asked or self.absent
            if looking:
                self._flush()
                looked = not stopping and self._look(state, step)
                stopping = stopping or not looked
            if stopping or step == last:
                return self._end(state, step, looked=looked)
            if self.saving.due(step):
                self._flush()
                self._save(state, step)
        raise AssertionError("the last step ends the run")

    def _end(self, state: TrainState, step: int, *, looked: bool) -> bool:
        """Saves behind the step that is the last one now; True when all steps are done."""
        self._look_at_steps()
        if self.absent:
            step = int(state.step)  # steps without data do not count
        self._flush()
        # Without data a run ends at a step that may be saved already.
        if not self.absent or step not in (self.first, self.saving.newest()):
            self._save(state, step, ending=True, looked=looked)
        if self.absent or step < self.task.num_steps or not looked:
            return self._stopped(step)
        self.progress.message(f"done: {self.workdir}")
        return True

    def _open(self, first: int, closing: contextlib.ExitStack) -> None:
        """Begins to write metrics and to show progress."""
        chief = jax.process_index() == 0
        self.writer = metric_writer.MetricWriter(self.workdir, first, active=chief)
        closing.callback(self.writer.close)
        self.progress = progress.Progress(first, self.task.num_steps, active=chief)
        closing.callback(self.progress.close)

    def _start_feed(self, first: int, closing: contextlib.ExitStack) -> None:
        """Begins to read batches."""
        self.began = time.perf_counter()
        self.batches = self.task.train_batches(first)
        closing.callback(self.batches.close)
        self.feed = Prefetch(self.batches, self.mesh)
        closing.callback(self.feed.close)

    def _stopped(self, step: int) -> bool:
        done = f"after step {step}, which is saved" if step else "before the first step"
        self.progress.message(f"stopped {done}: the same command continues")
        self._raise_reading_error()
        return False

    def _reading_error(self) -> Exception | None:
        return (self.feed and self.feed.error) or self.task.reading_error

    def _raise_reading_error(self) -> None:
        """Of this process or of another one, if there was any; all call it together."""
        error = self._reading_error()
        rank = 0 if error is None else 1 if isinstance(error, StorageUnavailable) else 2
        ranks = collectives.all_gather(rank)
        if error:
            raise error
        if worst := max(ranks):
            kind = StorageUnavailable if worst == 1 else RunError
            raise kind(f"process {ranks.index(worst)} could not read its data: see its log above")

    def _step(self, state: TrainState, step: int) -> tuple[TrainState, Batch]:
        """Dispatches a step; waits for an earlier one, so that the host does not run far ahead."""
        in_flight = self.in_flight
        batch, waited = self.feed.take(lambda: bool(in_flight) and not _done(in_flight[-1][1]))
        if self.feed.error and step == self.first + 1:
            self._refuse_to_begin(self.feed.error)
        self.watch.add_step(waited)
        state, values = self.step_fn(state, batch)
        in_flight.append((step, values))
        self._look_at_steps(but=IN_FLIGHT)
        self.progress.step()
        watchdog.beat(step)
        return state, values

    def _refuse_to_begin(self, error: Exception) -> None:
        """Without a first batch nothing is to be saved, but other processes may have to be told."""
        if jax.process_count() == 1 or not isinstance(error, StorageUnavailable):
            raise error

    def _first_step(self, state: TrainState, step: int) -> tuple[TrainState, Batch]:
        """The same with all that happens once; speed is measured from here on."""
        with watchdog.phase("compile", starting=True):
            state, values = self._step(state, step)
            self.stop.working()
            jax.block_until_ready(values)
        seconds = time.perf_counter() - self.began
        self.progress.message(f"first step after {seconds:.1f} s of reading and compiling")
        self.watch.restart()
        self.progress.restart(step)
        return state, values

    def _look_at_steps(self, but: int = 0) -> None:
        """Looks whether updates were finite, of all steps but so many."""
        while len(self.in_flight) > but:
            step, values = self.in_flight.popleft()
            if float(values["absent"]):
                self.absent = True
                continue
            names = ("skipped", "loss", "grad_norm", "lr")
            numbers = {name: float(values[name]) for name in names}
            warning = self.guard.look(step, numbers, self.saving.newest)
            if warning:
                self.progress.message(warning, logging.WARNING)

    def _flush(self) -> None:
        """Writes the numbers of an earlier step, by now ready, so that the device never waits."""
        if self.pending is None:
            return
        (step, values), self.pending = self.pending, None
        if float(values["absent"]):
            return
        numbers = {name: float(value) for name, value in values.items() if name not in COUNTED}
        speed = self.watch.report()
        epoch = {"epoch": step / self.task.steps_per_epoch}
        counts = {"bad_images": self.batches.bad_count, "skipped_updates": self.guard.total}
        self.writer.write(step, "train", epoch | numbers | counts | speed)
        warning = self.data_wait.judge(**self.watch.window._asdict())
        if warning:
            self.progress.message(warning, logging.WARNING)
        shown = ("loss", "baseline_loss", "top1", "lr", "images_per_s", "data_wait_ms", "mfu")
        self.progress.log(step, {k: v for k, v in (numbers | speed).items() if k in shown})

    def _due(self, every: int, step: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.task.num_steps)

    def _look_due(self, step: int) -> bool:
        every = [evaluator.every for evaluator in self.task.evaluators.values()]
        return any(self._due(n, step) for n in [*every, self.config.figure_every])

    def _look(self, state: TrainState, step: int) -> bool:
        """Held-out metrics and a picture, whichever is due.

        False, and nothing is written, when a signal or unreadable data cut it short.
        """
        jax.block_until_ready(state)  # the steps before are not part of the pause
        began = time.perf_counter()
        image = None
        try:
            with watchdog.phase("evaluate"), self.task.between_batches(self._heard):
                found = self._measure(state, step)
            if self._due(self.config.figure_every, step):
                with watchdog.phase("picture"):
                    image = self.task.picture(state, self.mesh)
        except Interrupted:
            return False
        if any(collectives.all_gather(self.task.reading_error is not None)):
            return False  # what was measured is not of all images
        self._show(found, image, step)
        self.watch.add_pause(time.perf_counter() - began)
        return True

    def _heard(self) -> None:
        """Between two batches of an evaluation."""
        watchdog.beat()
        if self.stop.poll():
            raise Interrupted

    def _measure(self, state: TrainState, step: int) -> dict[str, dict[str, float]]:
        """The held-out metrics that are due, by the name of their lines."""
        return {
            split: evaluator.run(state, self.mesh)
            for split, evaluator in self.task.evaluators.items()
            if self._due(evaluator.every, step)
        }

    def _show(self, found: dict[str, Any], image: Any, step: int) -> None:
        """Writes held-out metrics, and a picture unless it is None."""
        for split, values in found.items():
            self.writer.write(step, split, {"epoch": step / self.task.steps_per_epoch} | values)
            text = " ".join(f"{k} {v:.4g}" for k, v in values.items())
            self.progress.message(f"{split} at step {step}: {text}")
        if image is None:
            return
        ensure_held(now=True)
        self.writer.write_image(step, "picture", image)
        if jax.process_index() == 0:
            with self.writer.disk_may_be_full():
                self.progress.message(f"picture: {self.task.save_picture(image, step)}")

    def _save(
        self, state: TrainState, step: int, *, ending: bool = False, looked: bool = True
    ) -> None:
        """Saves; during a row of skipped updates, or without data, only when the run ends here."""
        self._look_at_steps()
        if (self.guard.streak or self.absent) and not ending:
            self.saving.postpone()
            return
        began = time.perf_counter()
        ensure_held(now=True)
        self.writer.secure()
        more = {"provenance": self.provenance} if self.provenance else {}
        more |= {} if looked else {"look_again": True}
        metadata = self.task.metadata(step) | more
        # The end of a run waits for the disk, and for reading back what was written.
        with watchdog.phase("save", starting=ending):
            self.saving.save(state, metadata)
            if ending:
                self.saving.finish(lambda: self.saving.save(state, metadata))
        self.watch.add_pause(time.perf_counter() - began)


def _done(values: dict[str, Any]) -> bool:
    """Whether the step that these come from is over."""
    return all(value.is_ready() for value in values.values())
