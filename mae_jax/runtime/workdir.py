"""The folder of a run: where it is, whether it can be written to, and that no other run has it.

No jax here and in the locks: the folder is looked at before anything slow begins.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from mae_jax.runtime import filesystem
from mae_jax.runtime.errors import UsageError
from mae_jax.runtime.gcs_lock import BucketLock
from mae_jax.runtime.workdir_lock import Lock

PROBE_BYTES = 2**20  # enough that a full disk or quota is noticed


def resolve(workdir: str) -> str:
    """The absolute path of a workdir, so that a change of directory cannot matter later.

    One in a bucket, gs://BUCKET/FOLDER, is that already.

    Raises:
      UsageError: it cannot be the name of a folder.
    """
    if not workdir.strip():
        raise UsageError("--workdir is empty: name a folder, or leave the flag out")
    if not workdir.isprintable():
        raise UsageError(f"--workdir={workdir!r} has characters that cannot be printed")
    if filesystem.in_bucket(workdir):
        return _resolve_in_bucket(workdir)
    return os.path.abspath(filesystem.expand(workdir))


def _resolve_in_bucket(workdir: str) -> str:
    scheme, _, place = workdir.partition("://")
    bucket, *folders = place.split("/")
    folders = [folder for folder in folders if folder]
    if scheme != "gs":
        raise UsageError(
            f"--workdir={workdir}: checkpoints go to a disk or to Google Cloud Storage, "
            f"gs://BUCKET/FOLDER; mount a bucket of {scheme}://"
        )
    if not bucket or not folders:
        raise UsageError(f"--workdir={workdir} is no folder of a bucket: gs://BUCKET/FOLDER")
    return "/".join([f"gs://{bucket}", *folders])


@contextlib.contextmanager
def lock(workdir: str, *, first: bool) -> Iterator[Callable[[], None]]:
    """Holds the lock of a workdir, which is made where it is missing.

    Yields a function that lets go of it early, for those who leave without unwinding.

    Args:
      workdir: from `resolve`.
      first: whether this is the process that locks for all processes of the run.

    Raises:
      UsageError: another run is at work there, or nothing can be written there.
    """
    global _held
    if not first:
        yield lambda: None
        return
    made = not filesystem.in_bucket(workdir) and not os.path.lexists(workdir)
    try:
        lock = _held = _lock(workdir)
        try:
            yield lock.release
        finally:
            _held = None
            lock.release()
    finally:
        if made:
            # A start that was refused leaves nothing behind; a run leaves a folder with files.
            with contextlib.suppress(OSError):
                os.rmdir(workdir)


_held: Lock | BucketLock | None = None


def ensure_held(*, now: bool = False) -> None:
    """Ends this process if it held a workdir that another run has by now, or that is gone.

    Called before anything is written there. In between, after a pause of the whole process (a
    suspended job or machine) that was long enough for another run to take the workdir over.

    Args:
      now: look, even if the last look was a moment ago: before a folder or a file is made.
    """
    if _held:
        _held.ensure_held(now=now)


def _lock(workdir: str) -> Lock | BucketLock:
    try:
        if filesystem.in_bucket(workdir):
            filesystem.probe(workdir)
            return BucketLock(workdir)
        os.makedirs(workdir, exist_ok=True)
        filesystem.probe(workdir, PROBE_BYTES)
        return Lock(workdir)
    except OSError as error:
        raise UsageError(_cannot_write(workdir, error)) from error


def _cannot_write(workdir: str, error: OSError) -> str:
    """One line, with a way out where there is one."""
    if filesystem.in_bucket(workdir):
        return (
            f"--workdir={workdir}: {error.strerror}: does the bucket exist, and may this machine's "
            "account write to it? (docs/multihost.md#a-workdir-in-a-bucket)"
        )
    remedies = {
        errno.ENOSPC: "make room there, or give another --workdir",
        errno.EDQUOT: "make room there, or give another --workdir",
        errno.ENAMETOOLONG: "give a shorter --workdir",
        errno.EEXIST: "give a --workdir that is a folder, or does not exist",
        errno.ENOTDIR: "give a --workdir whose parents are folders",
    }
    remedy = remedies.get(error.errno or 0, "give a --workdir that can be written to")
    return f"--workdir={workdir}: {error.strerror or error}: {remedy}"
