"""The checkpoint folders of a run: finding, renaming and deleting them.

`<run>/checkpoints/<step>` contains `state`, `metadata` and a file that marks it complete. Next to
the steps there may be leftovers of a killed process (removed at the next start) and
`corrupt-<step>`: quarantined, never read again, never deleted.
"""

import logging
import os
import re
import time
from collections.abc import Collection
from typing import NamedTuple

from etils import epath

from mae_jax.checkpoint import best, released
from mae_jax.runtime import filesystem
from mae_jax.runtime.errors import UsageError

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
ITEMS = ("state", "metadata")
CORRUPT = "corrupt-"
BEST = ":best"  # follows a run's path
_UNFINISHED = ".orbax-checkpoint-tmp"  # part of the name of an unfinished save
_DELETING = "deleting-"
_COMMITTED = "commit_success.txt"  # written last where renaming is not atomic
_STEP = re.compile(r"0|[1-9][0-9]*")  # only names as `folder_of` writes them; int() accepts more


class CheckpointPath(NamedTuple):
    """Location of a checkpoint.

    Attributes:
      folder: contains `state` and `metadata`.
      run: folder of the run; "" for a folder of weights, which belongs to no run.
      step: number of completed steps.
    """

    folder: str
    run: str
    step: int


class NoSuchStep(UsageError):
    """A checkpoint does not exist: it was never saved, or its run has deleted it since."""


def absolute(path: str) -> str:
    """The absolute path; paths of a bucket (gs://...) are absolute already."""
    return path if filesystem.in_bucket(path) else os.path.abspath(path)


def folder_of(run: str, step: int) -> epath.Path:
    return filesystem.path_of(run) / FOLDER / str(step)


def is_step(name: str) -> bool:
    """Whether this is a valid name of a step's folder: its number, without leading zeros."""
    return _STEP.fullmatch(name) is not None


@filesystem.os_errors()
def steps(run: str) -> list[int]:
    """Saved steps, oldest first, intact or damaged."""
    return sorted(int(p.name) for p in _listed(run) if is_step(p.name) and _committed(p))


@filesystem.os_errors()
def quarantined(run: str) -> list[str]:
    """Names of the quarantined folders."""
    return sorted(p.name for p in _listed(run) if p.name.startswith(CORRUPT))


@filesystem.os_errors()
def misnamed(run: str) -> list[str]:
    """Names of folders that are numbers but not in the form that a run writes (000020)."""
    return sorted(p.name for p in _listed(run) if p.name.isdecimal() and not is_step(p.name))


def exists(run: str) -> bool:
    """Whether a run has saved anything, intact or damaged."""
    return bool(steps(run) or quarantined(run))


@filesystem.os_errors()
def find(path: str) -> CheckpointPath:
    """Finds a checkpoint.

    Args:
      path: folder of a run (its newest step), of a step, or of weights; or RUN:best, the best step
        of a run (`checkpoint.keep_best`), unless that is the name of a folder.

    Raises:
      NoSuchStep: there is no such step.
      UsageError: there is no checkpoint, or no best one.
    """
    if path.endswith(BEST) and not filesystem.exists(path):
        return _find_best(path)
    folder = filesystem.path_of(absolute(path))
    if folder.parent.name == FOLDER and is_step(folder.name):
        checkpoint = CheckpointPath(str(folder), str(folder.parent.parent), int(folder.name))
        if is_missing(checkpoint):
            raise no_such_step(checkpoint)
        return checkpoint
    if all((folder / item).is_dir() for item in ITEMS):
        return CheckpointPath(str(folder), "", 0)
    run = str(folder.parent if folder.name == FOLDER else folder)
    saved = steps(run)
    if not saved:
        damaged = ", ".join(quarantined(run))
        note = f" ({damaged} set aside as damaged)" if damaged else ""
        raise UsageError(
            f"no checkpoint under {folder}{note}: give a run folder that has {FOLDER}/<step>/, a "
            "step's folder itself, or weights (a folder of mae_jax, Hugging Face or timm; .pth, "
            f".safetensors or .npz; by name: {', '.join(released.names())})"
        )
    return CheckpointPath(str(folder_of(run, saved[-1])), run, saved[-1])


def _find_best(path: str) -> CheckpointPath:
    folder = filesystem.path_of(absolute(path.removesuffix(BEST)))
    run = str(folder.parent if folder.name == FOLDER else folder)
    record = best.read(run)
    if record is None:
        find(run)  # raises if there is no checkpoint at all
        raise UsageError(
            f"{path}: {run} has no best step, which a run records only with "
            "--config.checkpoint.keep_best (such as eval/top1), after an evaluation"
        )
    checkpoint = CheckpointPath(str(folder_of(run, record.step)), run, record.step)
    if is_missing(checkpoint):
        raise no_such_step(checkpoint)
    return checkpoint


def require_run(path: str, checkpoint: CheckpointPath) -> None:
    """Checks that a checkpoint belongs to a run, so that it can be resumed.

    Raises:
      UsageError: it does not; names `path`, which `find` resolved to `checkpoint`.
    """
    if not checkpoint.run:
        raise UsageError(
            f"{path} has weights without an optimizer state: start a new run from them with "
            f"--config.init_from={path}"
        )


@filesystem.os_errors()
def is_missing(checkpoint: CheckpointPath) -> bool:
    """Whether a checkpoint does not exist or is being deleted."""
    folder = filesystem.path_of(checkpoint.folder)
    return not folder.is_dir() or bool(checkpoint.run and not _committed(folder))


def no_such_step(checkpoint: CheckpointPath) -> NoSuchStep:
    """Error for a missing checkpoint; lists the steps that exist."""
    saved = ", ".join(map(str, steps(checkpoint.run))) if checkpoint.run else ""
    return NoSuchStep(
        f"{checkpoint.folder} does not exist: never saved, or deleted since"
        f"{f' (steps of this run: {saved})' if saved else ''}"
    )


@filesystem.os_errors()
def quarantine(run: str, step: int) -> str:
    """Renames the folder of a damaged step; returns the new name."""
    taken = {p.name for p in _listed(run)}
    name, number = f"{CORRUPT}{step}", 1
    while name in taken:
        number += 1
        name = f"{CORRUPT}{step}-{number}"
    folder_of(run, step).rename(filesystem.path_of(run) / FOLDER / name)
    return name


def prune(
    run: str,
    newest: int,
    *,
    keep: int,
    keep_every: int,
    protected: Collection[int] = (),
) -> None:
    """Deletes old steps.

    Args:
      run: folder of the run.
      newest: a step known to be intact; newer steps are kept.
      keep: number of steps to keep, `newest` included.
      keep_every: multiples of this are kept as well; 0 for none.
      protected: steps to keep as well.
    """
    for step in [s for s in steps(run) if s <= newest][:-keep]:
        if step in protected or (keep_every and step % keep_every == 0):
            continue
        try:
            _discard(folder_of(run, step))
        except OSError as error:
            log.warning("cannot delete old checkpoint %d: %s", step, error)


@filesystem.os_errors()
def remove_unfinished(run: str, *, level: int = logging.DEBUG) -> None:
    """Removes leftovers of killed or failed saves and deletions; logs each at `level`."""
    for path in _listed(run):
        tmp = _UNFINISHED in path.name or path.name.startswith(_DELETING)
        if tmp or (is_step(path.name) and not _committed(path)):
            log.log(level, "removing %s, which was left unfinished", path)
            _discard(path)


@filesystem.os_errors()
def make_writable(run: str) -> None:
    """Creates the folder of checkpoints and checks that it is writable.

    Raises:
      OSError: it is not.
    """
    probe = filesystem.path_of(run) / FOLDER / f"{_DELETING}nothing"
    probe.mkdir(parents=True, exist_ok=True)
    probe.rmdir()


@filesystem.os_errors()
def _discard(folder: epath.Path) -> None:
    """Removes a folder; a kill at any moment leaves no partial step under a step's name."""
    if filesystem.in_bucket(str(folder)):
        (folder / _COMMITTED).unlink(missing_ok=True)
    else:
        folder = folder.rename(folder.parent / f"{_DELETING}{time.time_ns()}")
    try:
        with filesystem.os_errors():
            folder.rmtree()
    except OSError as error:  # a failed save may still be writing for a moment
        log.warning("cannot remove %s; retrying at the next save or start: %s", folder, error)


def _listed(run: str) -> list[epath.Path]:
    folder = filesystem.path_of(run) / FOLDER
    return [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []


def _committed(folder: epath.Path) -> bool:
    """Whether the save of a step's folder completed."""
    return not filesystem.in_bucket(str(folder)) or (folder / _COMMITTED).exists()
