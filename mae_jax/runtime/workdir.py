"""The folder of a run: its path, whether it is writable, and its lock against other runs.

Neither this module nor the locks import jax: the folder is checked before anything slow starts.
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
    """The absolute path of a workdir, or its normalized URL, gs://BUCKET/FOLDER.

    Raises:
      UsageError: it is not a valid name of a folder.
    """
    if not workdir.strip():
        raise UsageError("--workdir is empty: name a folder, or omit the flag")
    if not workdir.isprintable():
        raise UsageError(f"--workdir={workdir!r} contains unprintable characters")
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
            f"gs://BUCKET/FOLDER; mount a {scheme}:// bucket instead"
        )
    if not bucket or not folders:
        raise UsageError(f"--workdir={workdir} is not a folder in a bucket: use gs://BUCKET/FOLDER")
    return "/".join([f"gs://{bucket}", *folders])


def shortened(workdir: str) -> str:
    """A workdir as one would write it: relative to the current folder if it is inside."""
    inside = os.path.relpath(workdir) if not filesystem.in_bucket(workdir) else ".."
    return workdir if inside.startswith("..") else inside


@contextlib.contextmanager
def lock(workdir: str, *, first: bool) -> Iterator[Callable[[], None]]:
    """Holds the lock of a workdir, which is created if missing.

    Yields a function that releases the lock early, for exits without unwinding.

    Args:
      workdir: from `resolve`.
      first: whether this is process 0, which locks for all processes of the run.

    Raises:
      UsageError: another run is using the workdir, or it is not writable.
    """
    global _held
    if not first:
        yield lambda: None
        return
    created = not filesystem.in_bucket(workdir) and not os.path.lexists(workdir)
    try:
        lock = _held = _lock(workdir)
        try:
            yield lock.release
        finally:
            _held = None
            lock.release()
    finally:
        if created:
            # Fails once a run has written files; a refused start leaves nothing behind.
            with contextlib.suppress(OSError):
                os.rmdir(workdir)


_held: Lock | BucketLock | None = None


def ensure_held(*, now: bool = False) -> None:
    """Ends this process if another run has taken over its workdir, or if the workdir is gone.

    Called before writing there: the whole process may have been suspended for long enough that
    another run took the workdir over.

    Args:
      now: check even if the last check is recent: before a folder or a file is created.
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
    """One line, with a remedy if there is one."""
    if filesystem.in_bucket(workdir):
        return (
            f"--workdir={workdir}: {error.strerror}: does the bucket exist, and may this machine's "
            "account write to it? (docs/multihost.md#a-workdir-in-a-bucket)"
        )
    remedies = {
        errno.ENOSPC: "free some space, or use another --workdir",
        errno.EDQUOT: "free some space, or use another --workdir",
        errno.ENAMETOOLONG: "use a shorter --workdir",
        errno.EEXIST: "use a --workdir that is a folder or does not exist",
        errno.ENOTDIR: "use a --workdir whose parents are folders",
    }
    remedy = remedies.get(error.errno or 0, "use a --workdir that is writable")
    return f"--workdir={workdir}: {error.strerror or error}: {remedy}"
