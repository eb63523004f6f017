"""Makes the runs of a study, each in a process of its own, and continues where one was stopped."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from mae_jax import config as config_lib
from mae_jax.command_line import REPO
from mae_jax.errors import UsageError
from mae_jax.run_info import write_json
from mae_jax.stopping import STOPPED
from mae_jax.study import report
from mae_jax.study.plan import Cell, Stage

log = logging.getLogger(__name__)

LOG, NOTE = "log.txt", "study.json"  # in a stage's folder: what it printed; that it is done


def command(stage: Stage) -> list[str]:
    """What runs a stage."""
    return [sys.executable, "-m", "mae_jax.main", *stage.words, f"--workdir={stage.folder}"]


def is_done(stage: Stage) -> bool:
    """Whether a stage has run to its end, with these settings.

    Raises:
      UsageError: it did so with others.
    """
    note = _note(stage)
    if not note.get("done"):
        return False
    changed = config_lib.changes(note["config"], stage.config.to_dict())
    if changed:
        raise UsageError(
            f"{stage.folder} is done, with another configuration ({'; '.join(changed)}): give "
            "another --workdir, or remove that folder"
        )
    return True


def seconds(stage: Stage) -> float:
    """How long it took, all its sessions together."""
    return float(_note(stage).get("seconds", 0.0))


def run_cell(cell: Cell, where: str) -> int:
    """Runs those stages of a cell that are not done yet, until one fails or is stopped.

    Returns:
      Exit status of the last: 0, 75 stopped by a signal, anything else failed.
    """
    for stage in cell.stages:
        here = f"{where} {cell.row}, {stage.name}"
        if is_done(stage):
            log.info("%s was done before: %s", here, _found(stage))
            continue
        status = _run(stage, here)
        if status:
            return status
    return 0


def _run(stage: Stage, where: str) -> int:
    """Runs a stage; its exit status."""
    log.info("%s begins: %s", where, os.path.join(stage.folder, LOG))
    began = time.monotonic()
    status = _attend(command(stage), os.path.join(stage.folder, LOG))
    note = {
        "done": status == 0,
        "seconds": round(seconds(stage) + time.monotonic() - began, 1),
        "command": stage.words,
        "config": stage.config.to_dict(),
    }
    os.makedirs(stage.folder, exist_ok=True)
    write_json(os.path.join(stage.folder, NOTE), note)
    if status == 0:
        log.info("%s done in %.0f s: %s", where, note["seconds"], _found(stage))
    elif status == STOPPED:
        log.info("%s stopped; the same command continues", where)
    else:
        log.error("%s failed with status %d: %s (%s)", where, status, _last_line(stage), LOG)
    return status


def _attend(words: Sequence[str], log_file: str) -> int:
    """Runs a command, hands on the signals that stop a run, and waits for it."""
    os.makedirs(os.path.dirname(log_file), exist_ok=True)
    path = os.pathsep.join(filter(None, (REPO, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    with open(log_file, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            words,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches it once, through us
        )
    stopped = False

    def hand_on(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = True
        process.send_signal(number)

    before = {s: signal.signal(s, hand_on) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return STOPPED if stopped and status else status


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
