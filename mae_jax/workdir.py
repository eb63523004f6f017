"""The folder of a run: where it is, whether it can be written to, and that no other run has it.

No jax here and in `lock`: the folder is looked at before anything slow begins.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from mae_jax.errors import UsageError
from mae_jax.lock import Lock, probe


def resolve(workdir: str) -> str:
    """The absolute path of a workdir, so that a change of directory cannot matter later.

    Raises:
      UsageError: it cannot be the name of a folder.
    """
    if not workdir.strip():
        raise UsageError("--workdir is empty: name a folder, or leave the flag out")
    if "://" in workdir:
        raise UsageError(f"--workdir={workdir} is not a folder: mount the bucket, or use a disk")
    if not workdir.isprintable():
        raise UsageError(f"--workdir={workdir!r} has characters that cannot be printed")
    path = os.path.expanduser(workdir)
    if path.startswith("~"):
        raise UsageError(f"--workdir={workdir}: there is no such user; write ./{workdir} otherwise")
    return os.path.abspath(path)


@contextlib.contextmanager
def only_run(workdir: str, *, first: bool) -> Iterator[Callable[[], None]]:
    """Holds the lock of a workdir, which is made where it is missing.

    Yields a function that lets go of it early, for those who leave without unwinding.

    Args:
      workdir: from `resolve`.
      first: whether this is the process that locks for all processes of the run.

    Raises:
      UsageError: another run is at work there, or nothing can be written there.
    """
    if not first:
        yield lambda: None
        return
    made = not os.path.lexists(workdir)
    try:
        lock = _lock(workdir)
        try:
            yield lock.release
        finally:
            lock.release()
    finally:
        if made:
            # A start that was refused leaves nothing behind; a run leaves a folder with files.
            with contextlib.suppress(OSError):
                os.rmdir(workdir)


def _lock(workdir: str) -> Lock:
    try:
        os.makedirs(workdir, exist_ok=True)
        probe(workdir)
        return Lock(workdir)
    except OSError as error:
        raise UsageError(_cannot_write(workdir, error)) from error


def _cannot_write(workdir: str, error: OSError) -> str:
    """One line, with a way out where there is one."""
    remedies = {
        errno.ENOSPC: "make room there, or give another --workdir",
        errno.EDQUOT: "make room there, or give another --workdir",
        errno.ENAMETOOLONG: "give a shorter --workdir",
        errno.EEXIST: "give a --workdir that is a folder, or does not exist",
        errno.ENOTDIR: "give a --workdir whose parents are folders",
    }
    remedy = remedies.get(error.errno or 0, "give a --workdir that can be written to")
    return f"--workdir={workdir}: {error.strerror or error}: {remedy}"
