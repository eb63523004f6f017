"""One-line reports of a full or failing disk: which disk, space free, space needed."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

from mae_jax.runtime import filesystem
from mae_jax.runtime.errors import RunError, UsageError, one_line

FULL = (errno.ENOSPC, errno.EDQUOT)
# The path or its permissions are at fault, not the disk.
_BAD_PATH = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST, errno.ENOTDIR),
    *(errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
)


@contextlib.contextmanager
def writing(path: str) -> Iterator[str]:
    """`filesystem.replacing` with `translate_errors`."""
    with translate_errors(path), filesystem.replacing(path) as temporary:
        yield temporary


@contextlib.contextmanager
def translate_errors(path: str, hint: str = "") -> Iterator[None]:
    """Turns errors of storage into one-line errors.

    Args:
      path: the file or folder being written.
      hint: appended to the message.

    Raises:
      UsageError: the path is not writable.
      RunError: the disk is full or fails.
    """
    try:
        yield
    except (UsageError, RunError):
        raise
    except Exception as error:
        number = _errno(error)
        if number is None:
            raise
        kind = UsageError if number in _BAD_PATH else RunError
        raise kind(f"{path} cannot be written: {error_line(error, path)}{hint}") from error


def error_line(error: BaseException, path: str, needed: int = 0) -> str:
    """One line for an error of storage; for any other error, its message.

    Args:
      error: tensorstore and other libraries hide the errno of an OSError in their messages.
      path: the file or folder being written; need not exist.
      needed: bytes to write, if known.
    """
    number = _errno(error)
    if number is None or filesystem.in_bucket(path):
        return one_line(error)
    line = f"{os.strerror(number)} (disk {mount_of(path)}"
    if number in FULL:
        line += f": {size(free_bytes(path))} free"
        line += f", {size(needed)} needed" if needed else ""
    return line + ")"


def require_room(path: str, needed: int) -> None:
    """Fails early if `needed` bytes do not fit, rather than filling the disk.

    Raises:
      OSError: ENOSPC.
    """
    if filesystem.in_bucket(path):
        return
    usage = _usage(path)
    if usage.total and usage.free < needed:  # some FUSE file systems report 0
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def free_bytes(path: str) -> int:
    """Bytes that can still be written to the file system of a path, which need not exist."""
    return _usage(path).free


def _usage(path: str) -> Any:
    return shutil.disk_usage(existing(path))  # not of the mount point: a folder may have a quota


def existing(path: str) -> str:
    """The path itself, or its nearest parent that exists."""
    path = os.path.realpath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def mount_of(path: str) -> str:
    """Mount point of the file system of a path, which need not exist."""
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def size(nbytes: int) -> str:
    """Bytes as text: 999 B, 1.2 MB, 34.5 GB."""
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value >= 1000:
            value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def _errno(error: BaseException | None) -> int | None:
    """errno of an OSError, of one in the error's message, or of one that caused it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        # The formats of tensorstore and safetensors.
        named = re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)|Os { code: (\d+)", str(error))
        if named:
            return int(next(filter(None, named.groups())))
        error = error.__cause__ or error.__context__
    return None
