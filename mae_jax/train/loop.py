"""The training loop. It is independent of models and tasks: a `Task` provides both.

`run` determines where to start and builds the services; `train` is the loop itself.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from mae_jax.checkpoint import checkpointer
from mae_jax.data import storage
from mae_jax.data.prefetch import Prefetch
from mae_jax.distributed import sharding
from mae_jax.runtime import compilation_cache, watchdog, workdir
from mae_jax.runtime.errors import StorageUnavailable
from mae_jax.runtime.preemption import StopRequest
from mae_jax.train import reading_errors, run_info
from mae_jax.train.evaluation_runner import EvaluationRunner, check_keep_best
from mae_jax.train.initial_state import Start, check_workdir, start_state
from mae_jax.train.metric_writer import MetricWriter
from mae_jax.train.nan_guard import NanGuard
from mae_jax.train.progress import Progress
from mae_jax.train.save_policy import SavePolicy
from mae_jax.train.state import TrainState, abstract_state
from mae_jax.train.step import make_train_step
from mae_jax.train.step_monitor import StepMonitor
from mae_jax.train.task import Task
from mae_jax.train.throughput import ThroughputMeter
from mae_jax.train.train_log import TrainLog

log = logging.getLogger(__name__)


def run(
    task: Task,
    config: Any,
    folder: str,
    *,
    allow_config_change: bool = False,
    stop: StopRequest | None = None,
    before_step: Callable[[int], None] = lambda step: None,
    first_look: str = "",
) -> bool:
    """Trains to the end, or until asked to stop.

    Args:
      task: what to train.
      config: the full configuration.
      folder: workdir of the run; an existing run is continued.
      allow_config_change: continue even if the configuration has changed.
      stop: signals when to stop before the end.
      before_step: called with the number of each step (from 1) before its batch is taken.
      first_look: flag of the recipe's quick setting, recommended to long runs; "" for none.

    Returns:
      True if all steps are done, False if a signal stopped the run after a save.

    Raises:
      UsageError: the workdir's run has another configuration, or a start point does not fit.
      FloatingPointError: too many updates in a row were not finite.
      RunError: too many saves in a row failed.
      StorageUnavailable: the data could not be read for `data.storage_wait`; the state is saved.
    """
    mesh, stop = sharding.make_mesh(**config.mesh), stop or StopRequest()
    check_keep_best(task, config.checkpoint.keep_best)
    # Background services are closed in reverse order.
    with contextlib.ExitStack() as closing:
        saver = checkpointer.Checkpointer(
            folder,
            keep=config.checkpoint.keep,
            keep_every=config.checkpoint.keep_every,
            keep_best=config.checkpoint.keep_best,
        )
        closing.callback(saver.close)
        check_workdir(task, saver, allow_config_change)
        abstract = abstract_state(task, mesh)
        with watchdog.phase("restore", starting=True):
            start = start_state(task, config, folder, saver, abstract, allow_config_change)
        log.info("%s", start.summary)
        saver.recover_best()
        if task.num_steps == 0 or int(start.state.step) < task.num_steps:
            # Not earlier: a start that is refused or has nothing to do must not change any file.
            run_info.log_and_write(folder, config, task.summary(), start.param_report)
        train_step = make_train_step(
            task, abstract, mesh, seed=config.seed, grad_accum=config.grad_accum
        )
        with watchdog.phase("train"), storage.ends_when(stop.noticed):
            first = int(start.state.step)
            services = make_services(
                task, config, folder, mesh, first, train_step, saver, stop, closing, first_look
            )
            return train(task, config, start, services, before_step)


@dataclasses.dataclass(frozen=True)
class LoopServices:
    """What the loop uses; built before the first step.

    Attributes:
      folder: workdir of the run.
      mesh: the devices.
      train_step: function (state, batch) -> (state, metrics).
      stop: signals when to stop before the end.
      meter: measures the speed of the steps.
      writer: writes metrics.
      progress: shows metrics.
      saves: decides when to save, and retries failed saves.
      steps: steps that were dispatched but have not finished.
      train_log: writes the metrics of the steps.
      evaluation: computes held-out metrics and figures.
      closing: callbacks to run at the end of the run.
    """

    folder: str
    mesh: Mesh
    train_step: Any
    stop: StopRequest
    meter: ThroughputMeter
    writer: MetricWriter
    progress: Progress
    saves: SavePolicy
    steps: StepMonitor
    train_log: TrainLog
    evaluation: EvaluationRunner
    closing: contextlib.ExitStack


def make_services(
    task: Task,
    config: Any,
    folder: str,
    mesh: Mesh,
    first: int,
    train_step: Any,
    saver: checkpointer.Checkpointer,
    stop: StopRequest,
    closing: contextlib.ExitStack,
    first_look: str,
) -> LoopServices:
    """Builds the services of a run that continues after step `first`."""
    primary = jax.process_index() == 0
    writer = MetricWriter(folder, first, active=primary)
    closing.callback(writer.close)
    meter = ThroughputMeter(batch_size=config.batch_size, flops_per_image=task.flops_per_image)
    progress = Progress(
        first, task.num_steps, clock=meter.clock, first_look=first_look, active=primary
    )
    closing.callback(progress.close)
    guard = NanGuard(config.nan_guard.max_skips, folder, task.describe_batch)
    saves = SavePolicy(
        saver, config.checkpoint, check_every=config.log_every, stop=stop, first=first
    )
    shown: dict[str, Any] = {"writer": writer, "progress": progress, "meter": meter}
    sizes = {"batch_size": config.batch_size, "steps_per_epoch": task.steps_per_epoch}
    return LoopServices(
        folder=folder,
        mesh=mesh,
        train_step=train_step,
        stop=stop,
        saves=saves,
        steps=StepMonitor(guard, progress, saves.newest),
        train_log=TrainLog(**shown, guard=guard, **sizes),
        evaluation=EvaluationRunner(
            task, mesh, config.figure_every, stop=stop, is_best=saves.add_evaluation, **shown
        ),
        closing=closing,
        **shown,
    )


def train(
    task: Task,
    config: Any,
    start: Start,
    services: LoopServices,
    before_step: Callable[[int], None],
) -> bool:
    """Runs the remaining steps, each in this order: batch, step, log, evaluate, save, stop.

    Stop requests are checked between steps and between evaluated batches. The step is saved, and
    an interrupted evaluation is repeated when the run continues. Unreadable data end a run the same
    way, at the same step on all processes: steps without data do not change the state.

    Returns:
      True when all steps are done.
    """
    s, state = services, start.state
    first, last = int(state.step), task.num_steps
    if (first == 0 or start.rerun_eval) and not s.evaluation.run(state, first):
        return _stopped(s, first, task.reading_error)
    if first >= last:
        left = f"step {first} of {last}: nothing left to do"
        s.progress.message(left if last else f"done: {s.folder}")
        return True

    began = time.perf_counter()
    batches = task.train_batches(first)
    s.closing.callback(batches.close)
    feed = Prefetch(batches, s.mesh)
    s.closing.callback(feed.close)

    step, evaluated = first, True
    while True:
        # Batch and step: dispatched asynchronously.
        step += 1
        before_step(step)
        with _first_step(s, began) if step == first + 1 else contextlib.nullcontext():
            batch, waited = feed.take(s.steps.busy)
            if feed.error and step == first + 1:
                _refuse_to_begin(feed.error)
            s.meter.add_step(waited)
            state, metrics = s.train_step(state, batch)
            s.steps.add(step, metrics)
            s.progress.step()
            watchdog.heartbeat(step)
            if step == first + 1:
                s.stop.mark_savable()
                jax.block_until_ready(metrics)
        workdir.ensure_held()

        # Log an earlier step, whose metrics are ready.
        s.train_log.log_pending(batches)
        asked = s.stop.poll()
        if step % config.log_every == 0 or step == last:
            s.train_log.add(step, metrics)

        # Evaluate.
        eval_due = s.evaluation.due(step)
        if asked or eval_due or step == last:
            s.steps.check_finished_steps()
        stopping = asked or s.steps.absent
        if eval_due:
            s.train_log.log_pending(batches)
            evaluated = not stopping and s.evaluation.run(state, step)
        if stopping or not evaluated or step == last:
            break

        # Save.
        if s.saves.should_save(step):
            s.train_log.log_pending(batches)
            s.steps.check_finished_steps()
            if s.steps.skipping or s.steps.absent:
                s.saves.defer()
            else:
                _save(s, state, task.metadata(step) | start.metadata())

    # Stop after the last step, a request, or a step without data.
    s.steps.check_finished_steps()
    absent = s.steps.absent
    if absent:
        step = int(state.step)  # steps without data do not count
    s.train_log.log_pending(batches)
    # A run that ends for lack of data may have saved this step already.
    if not absent or step not in (first, s.saves.newest()):
        more = {} if evaluated else {"rerun_eval": True}
        _save(s, state, task.metadata(step) | start.metadata() | more, final=True)
    if absent or step < last or not evaluated:
        return _stopped(s, step, feed.error or task.reading_error)
    s.progress.message(f"done: {s.folder}")
    return True


@contextlib.contextmanager
def _first_step(services: LoopServices, began: float):
    """Context of the first step, which compiles; speed is measured after it."""
    services.progress.message(f"compiling the training step; {compilation_cache.advice()}")
    with watchdog.phase("compile", starting=True):
        yield
    seconds = time.perf_counter() - began
    services.progress.message(f"first step took {seconds:.1f} s to read and compile")
    services.meter.restart()
    services.progress.restart()


def _refuse_to_begin(error: Exception) -> None:
    """Without a first batch there is nothing to save; raises unless others must be notified."""
    if jax.process_count() == 1 or not isinstance(error, StorageUnavailable):
        raise error


def _save(
    services: LoopServices, state: TrainState, metadata: dict[str, Any], *, final: bool = False
) -> None:
    """Starts a checkpoint; waits for a final one until it is read back."""
    began, saves = time.perf_counter(), services.saves
    workdir.ensure_held(now=True)
    services.writer.secure()
    with watchdog.phase("save", starting=final):
        saves.save(state, metadata)
        if final:
            saves.save_final(lambda: saves.save(state, metadata))
    services.meter.add_pause(time.perf_counter() - began)


def _stopped(services: LoopServices, step: int, error: Exception | None) -> bool:
    """Logs where a run stops before its end; raises the error if data could not be read."""
    where = f"after step {step}, which is saved" if step else "before the first step"
    services.progress.message(f"stopped {where}: rerun the same command to continue")
    reading_errors.raise_on_all_hosts(error)
    return False
