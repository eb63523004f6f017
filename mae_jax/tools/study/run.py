"""Runs the stages of a study, each in a separate process, and resumes unfinished ones."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from mae_jax.config import diff, recipe_file
from mae_jax.runtime.errors import STOPPED, UsageError
from mae_jax.runtime.filesystem import write_json
from mae_jax.runtime.preemption import SIGNALS
from mae_jax.tools.study import report
from mae_jax.tools.study.plan import Cell, Stage

log = logging.getLogger(__name__)

_SIGNALS = (*SIGNALS, signal.SIGHUP)  # SIGHUP: the terminal was closed
LOG, RECORD = "log.txt", "study.json"  # in a stage's folder: its output; whether it is done


def command(stage: Stage) -> list[str]:
    """The command that runs a stage."""
    return [sys.executable, "-m", "mae_jax.main", *stage.words, f"--workdir={stage.folder}"]


class Stop:
    """Handles signals during a study, and forwards them to the current run.

    Attributes:
      requested: whether a signal arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        self._process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator["Stop"]:
        """Within this context signals do not kill the study; only for the main thread."""
        previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def wait_for(self, process: "subprocess.Popen[bytes]") -> int:
        """Waits for a run to end; returns its exit status."""
        self._process = process
        if self.requested:  # while the run was being started
            process.send_signal(signal.SIGTERM)
        status = process.wait()
        self._process = None
        return status

    def _on_signal(self, number: int, frame: Any) -> None:
        self.requested = True
        if self._process is not None:  # runs do not handle SIGHUP
            self._process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)


def is_done(stage: Stage) -> bool:
    """Whether a stage finished with this configuration, and its pre-training with its own.

    Raises:
      UsageError: it finished with a different one.
    """
    record = _read_record(stage)
    if not record.get("done"):
        return False
    changed = diff.changes(record["config"], stage.config.to_dict())
    if stage.base is not None:
        base = diff.changes(record["pretrain"], stage.base.to_dict())
        changed += [f"pretrain.{line}" for line in base]
    if changed:
        raise UsageError(
            f"{stage.folder} is done, with another configuration ({'; '.join(changed)}): choose "
            f"another --workdir, or remove {os.path.dirname(stage.folder)}"
        )
    return True


def run_cell(cell: Cell, where: str, stop: Stop) -> int:
    """Runs the unfinished stages of a cell, until one fails or a signal arrives.

    Returns:
      Exit status: 0 all done, 75 stopped by a signal, otherwise the status of the run that failed
      (70: it hung).
    """
    for stage in cell.stages:
        label = f"{where} {cell.row}, {stage.name}"
        if is_done(stage):
            log.info("%s was done before: %s", label, _results(stage))
            continue
        status = _run(stage, label, stop)
        if stop.requested or status == STOPPED:  # STOPPED: only the run was stopped
            log.info("stopped; run the same command to continue")
            return STOPPED
        if status:
            return status
    return 0


def _run(stage: Stage, label: str, stop: Stop) -> int:
    """Runs a stage; returns its exit status."""
    path = os.path.join(stage.folder, LOG)
    log.info("%s starts: %s", label, path)
    start, earlier = time.monotonic(), _read_record(stage).get("seconds", 0.0)
    os.makedirs(stage.folder, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        status = stop.wait_for(_start(command(stage), file))
    record = {
        "done": status == 0,
        "seconds": round(earlier + time.monotonic() - start, 1),  # of all sessions
        "command": stage.words,
        "config": stage.config.to_dict(),
        "pretrain": stage.base and stage.base.to_dict(),
    }
    write_json(os.path.join(stage.folder, RECORD), record)
    if status == 0:
        log.info("%s done in %.0f s: %s", label, record["seconds"], _results(stage))
    elif not stop.requested and status != STOPPED:
        log.error("%s failed with status %d: %s (%s)", label, status, _last_line(stage), path)
    return status


def _start(words: Sequence[str], output: IO[str]) -> "subprocess.Popen[bytes]":
    # An installed package is found anyway; a clone must be on the path.
    path = os.pathsep.join(filter(None, (recipe_file.ROOT, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    # In a new session, so that Ctrl-C reaches the run only once, through us.
    return subprocess.Popen(
        words, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


def _read_record(stage: Stage) -> dict[str, Any]:
    path = os.path.join(stage.folder, RECORD)
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _results(stage: Stage) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in report.measured(stage.name, stage.folder).items())


def _last_line(stage: Stage) -> str:
    with open(os.path.join(stage.folder, LOG), encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1] if lines else "it printed nothing"
