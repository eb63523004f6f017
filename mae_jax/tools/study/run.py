"""Makes the runs of a study, each in a process of its own, and continues where one was stopped."""

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

from mae_jax.config import diff as config_lib
from mae_jax.config import recipe_file
from mae_jax.runtime.errors import STOPPED, UsageError
from mae_jax.runtime.filesystem import write_json
from mae_jax.runtime.preemption import SIGNALS
from mae_jax.tools.study import report
from mae_jax.tools.study.plan import Cell, Stage

log = logging.getLogger(__name__)

_SIGNALS = (*SIGNALS, signal.SIGHUP)  # SIGHUP: the terminal is gone
LOG, NOTE = "log.txt", "study.json"  # in a stage's folder: what it printed; that it is done


def command(stage: Stage) -> list[str]:
    """What runs a stage."""
    return [sys.executable, "-m", "mae_jax.main", *stage.words, f"--workdir={stage.folder}"]


class Stop:
    """Hears signals during a whole study, and hands them on to the run under way.

    Attributes:
      heard: whether one came.
    """

    def __init__(self) -> None:
        self.heard = False
        self._process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Within it no signal ends the study by itself; the main thread must call this."""
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait_for(self, process: "subprocess.Popen[bytes]") -> int:
        """Exit status of a run, when it has ended."""
        self._process = process
        if self.heard:  # while it was being started
            process.send_signal(signal.SIGTERM)
        status = process.wait()
        self._process = None
        return status

    def _on_signal(self, number: int, frame: Any) -> None:
        self.heard = True
        if self._process is not None:  # runs know no SIGHUP
            self._process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)


def is_done(stage: Stage) -> bool:
    """Whether a stage has run to its end, with these settings, its own and its pre-training's.

    Raises:
      UsageError: it did so with others.
    """
    note = _note(stage)
    if not note.get("done"):
        return False
    changed = config_lib.changes(note["config"], stage.config.to_dict())
    if stage.base is not None:
        first = config_lib.changes(note["pretrain"], stage.base.to_dict())
        changed += [f"pretrain.{line}" for line in first]
    if changed:
        raise UsageError(
            f"{stage.folder} is done, with another configuration ({'; '.join(changed)}): give "
            f"another --workdir, or remove {os.path.dirname(stage.folder)}"
        )
    return True


def run_cell(cell: Cell, where: str, stop: Stop) -> int:
    """Runs those stages of a cell that are not done yet, until one fails or a signal comes.

    Returns:
      Exit status: 0 all done, 75 stopped by a signal, anything else that of the run that failed
      (70: it hung).
    """
    for stage in cell.stages:
        here = f"{where} {cell.row}, {stage.name}"
        if is_done(stage):
            log.info("%s was done before: %s", here, _found(stage))
            continue
        status = _run(stage, here, stop)
        if stop.heard or status == STOPPED:  # or somebody stopped that run alone
            log.info("stopped; the same command continues")
            return STOPPED
        if status:
            return status
    return 0


def _run(stage: Stage, where: str, stop: Stop) -> int:
    """Runs a stage; its exit status."""
    path = os.path.join(stage.folder, LOG)
    log.info("%s begins: %s", where, path)
    began, before = time.monotonic(), _note(stage).get("seconds", 0.0)
    os.makedirs(stage.folder, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        status = stop.wait_for(_start(command(stage), file))
    note = {
        "done": status == 0,
        "seconds": round(before + time.monotonic() - began, 1),  # all sessions together
        "command": stage.words,
        "config": stage.config.to_dict(),
        "pretrain": stage.base and stage.base.to_dict(),
    }
    write_json(os.path.join(stage.folder, NOTE), note)
    if status == 0:
        log.info("%s done in %.0f s: %s", where, note["seconds"], _found(stage))
    elif not stop.heard and status != STOPPED:
        log.error("%s failed with status %d: %s (%s)", where, status, _last_line(stage), LOG)
    return status


def _start(words: Sequence[str], output: IO[str]) -> "subprocess.Popen[bytes]":
    # A new Python finds an installed package, but a clone only on its path.
    path = os.pathsep.join(filter(None, (recipe_file.ROOT, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    # In a session of its own, so that a Ctrl-C reaches it once, through us.
    return subprocess.Popen(
        words, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


def _note(stage: Stage) -> dict[str, Any]:
    path = os.path.join(stage.folder, NOTE)
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _found(stage: Stage) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in report.measured(stage.name, stage.folder).items())


def _last_line(stage: Stage) -> str:
    with open(os.path.join(stage.folder, LOG), encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1] if lines else "it printed nothing"
