"""The folders of a run's checkpoints: which there are, and taking one away.

`<run>/checkpoints/<step>` holds `state`, `metadata` and the file that says it is complete. Beside
them may lie what a killed process left (removed at the next start), and `corrupt-<step>`: set
aside, never read again, never deleted.
"""

import logging
import os
import re
import time
from typing import NamedTuple

from etils import epath

from mae_jax.runtime import filesystem
from mae_jax.runtime.errors import UsageError

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
ITEMS = ("state", "metadata")
CORRUPT = "corrupt-"
_UNFINISHED = ".orbax-checkpoint-tmp"  # of a save
_DELETING = "deleting-"
_COMMITTED = "commit_success.txt"  # where renaming is not atomic, the last file written
_STEP = re.compile(r"0|[1-9][0-9]*")  # what `folder_of` writes, and nothing that int() would read


class CheckpointPath(NamedTuple):
    """Where a checkpoint is.

    Attributes:
      folder: has `state` and `metadata`.
      run: the run's folder; "" for a folder of weights, which belongs to none.
      step: completed steps.
    """

    folder: str
    run: str
    step: int


class NoSuchStep(UsageError):
    """A checkpoint is not where it should be: it never was, or its run has deleted it since."""


def absolute(path: str) -> str:
    """The path whatever the current folder; one of a bucket (gs://...) is that already."""
    return path if filesystem.in_bucket(path) else os.path.abspath(path)


def folder_of(run: str, step: int) -> epath.Path:
    return filesystem.path_of(run) / FOLDER / str(step)


def is_step(name: str) -> bool:
    """Whether this is the name of a step's folder: its number, without leading zeros."""
    return _STEP.fullmatch(name) is not None


@filesystem.os_errors()
def steps(run: str) -> list[int]:
    """Steps that were saved, oldest first, be they sound or damaged."""
    return sorted(int(p.name) for p in _listed(run) if is_step(p.name) and _committed(p))


@filesystem.os_errors()
def corrupt(run: str) -> list[str]:
    """Names of the folders that were set aside."""
    return sorted(p.name for p in _listed(run) if p.name.startswith(CORRUPT))


@filesystem.os_errors()
def misnamed(run: str) -> list[str]:
    """Names of folders that are numbers, but not as a run writes them (000020)."""
    return sorted(p.name for p in _listed(run) if p.name.isdecimal() and not is_step(p.name))


def exists(run: str) -> bool:
    """Whether a run has saved anything, sound or not."""
    return bool(steps(run) or corrupt(run))


@filesystem.os_errors()
def find(path: str) -> CheckpointPath:
    """The checkpoint of a run folder, meaning its newest step, of a step's, or of a weights folder.

    Raises:
      NoSuchStep: there is no such step.
      UsageError: there is no checkpoint.
    """
    folder = filesystem.path_of(absolute(path))
    if folder.parent.name == FOLDER and is_step(folder.name):
        found = CheckpointPath(str(folder), str(folder.parent.parent), int(folder.name))
        if gone(found):
            raise no_such_step(found)
        return found
    if all((folder / item).is_dir() for item in ITEMS):
        return CheckpointPath(str(folder), "", 0)
    run = str(folder.parent if folder.name == FOLDER else folder)
    found = steps(run)
    if not found:
        aside = f" ({', '.join(corrupt(run))} set aside as damaged)" if corrupt(run) else ""
        raise UsageError(
            f"no checkpoint under {folder}{aside}: give a run folder that has {FOLDER}/<step>/, a "
            "step's folder itself, or weights (a folder of mae_jax, Hugging Face or timm; .pth, "
            ".safetensors or .npz)"
        )
    return CheckpointPath(str(folder_of(run, found[-1])), run, found[-1])


def require_run(path: str, found: CheckpointPath) -> None:
    """Refuses, for what is to be continued, weights that belong to no run.

    Raises:
      UsageError: names `path`, where `found` was found.
    """
    if not found.run:
        raise UsageError(
            f"{path} holds weights without an optimizer: begin with them, --config.init_from={path}"
        )


@filesystem.os_errors()
def gone(found: CheckpointPath) -> bool:
    """Whether a checkpoint is not there, or is being deleted."""
    folder = filesystem.path_of(found.folder)
    return not folder.is_dir() or bool(found.run and not _committed(folder))


def no_such_step(found: CheckpointPath) -> NoSuchStep:
    """Says that a checkpoint is not there, and which are."""
    there = ", ".join(map(str, steps(found.run))) if found.run else ""
    return NoSuchStep(
        f"{found.folder} is not there: never saved, or deleted since"
        f"{f' (steps of this run: {there})' if there else ''}"
    )


@filesystem.os_errors()
def quarantine(run: str, step: int) -> str:
    """Renames a damaged step; returns its new name."""
    taken = {p.name for p in _listed(run)}
    name, number = f"{CORRUPT}{step}", 1
    while name in taken:
        number += 1
        name = f"{CORRUPT}{step}-{number}"
    folder_of(run, step).rename(filesystem.path_of(run) / FOLDER / name)
    return name


def prune(run: str, newest: int, *, keep: int, keep_every: int) -> None:
    """Deletes old steps.

    Args:
      run: folder of the run.
      newest: a step known to be sound; what is newer stays.
      keep: how many stay, `newest` among them.
      keep_every: multiples of this stay as well; 0 for none.
    """
    for step in [s for s in steps(run) if s <= newest][:-keep]:
        if keep_every and step % keep_every == 0:
            continue
        try:
            _discard(folder_of(run, step))
        except OSError as error:
            log.warning("checkpoint %d, no longer needed, cannot be deleted: %s", step, error)


@filesystem.os_errors()
def remove_unfinished(run: str, *, level: int = logging.DEBUG) -> None:
    """Removes what killed or failed saves and deletions left behind; logs it at a level."""
    for path in _listed(run):
        tmp = _UNFINISHED in path.name or path.name.startswith(_DELETING)
        if tmp or (is_step(path.name) and not _committed(path)):
            log.log(level, "removing %s, which was left unfinished", path)
            _discard(path)


@filesystem.os_errors()
def make_writable(run: str) -> None:
    """Makes the folder of checkpoints, and sees whether folders can be made in it.

    Raises:
      OSError: they cannot.
    """
    probe = (
        filesystem.path_of(run) / FOLDER / f"{_DELETING}nothing"
    )  # tells whether it can be written to
    probe.mkdir(parents=True, exist_ok=True)
    probe.rmdir()


@filesystem.os_errors()
def _discard(folder: epath.Path) -> None:
    """Removes a folder so that a kill meanwhile leaves no half of a step under a step's name."""
    if filesystem.in_bucket(str(folder)):
        (folder / _COMMITTED).unlink(missing_ok=True)
    else:
        folder = folder.rename(folder.parent / f"{_DELETING}{time.time_ns()}")
    try:
        with filesystem.os_errors():
            folder.rmtree()
    except OSError as error:  # a failed save may write on for a moment
        log.warning("%s cannot be removed now, but at the next save or start: %s", folder, error)


def _listed(run: str) -> list[epath.Path]:
    folder = filesystem.path_of(run) / FOLDER
    return [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []


def _committed(folder: epath.Path) -> bool:
    """Whether a folder with a step's name was written to the end, whatever befell it since."""
    return not filesystem.in_bucket(str(folder)) or (folder / _COMMITTED).exists()
