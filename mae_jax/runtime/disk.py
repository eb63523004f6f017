"""What a full or failing disk is reported as: which one it is, what it has, what is needed."""

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
# Not the disk is at fault, but the path or who may write there.
_BAD_PATH = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST, errno.ENOTDIR),
    *(errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
)


@contextlib.contextmanager
def writing(path: str) -> Iterator[str]:
    """`files.replacing` within `told`: the file or folder is there whole, or not at all."""
    with told(path), filesystem.replacing(path) as temporary:
        yield temporary


@contextlib.contextmanager
def told(path: str, hint: str = "") -> Iterator[None]:
    """Makes one line of what a disk does to a program that writes there.

    Args:
      path: what is written.
      hint: added to the line.

    Raises:
      UsageError: nothing can be written at this path.
      RunError: the disk is full or fails.
    """
    try:
        yield
    except (UsageError, RunError):
        raise
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        kind = UsageError if number in _BAD_PATH else RunError
        raise kind(f"{path} cannot be written: {error_line(error, path)}{hint}") from error


def error_line(error: BaseException, path: str, needed: int = 0) -> str:
    """One line for an error of storage; for any other, the text of the error.

    Args:
      error: tensorstore and other libraries hide the number of an OSError in their texts.
      path: what was to be written; need not exist.
      needed: bytes that it takes, where that is known.
    """
    number = _number(error)
    if number is None or filesystem.in_bucket(path):
        return one_line(error)
    line = f"{os.strerror(number)} (disk {mount_of(path)}"
    if number in FULL:
        line += f": {size(free_bytes(path))} free"
        line += f", {size(needed)} needed" if needed else ""
    return line + ")"


def require_room(path: str, needed: int) -> None:
    """Refuses to begin what cannot fit, which would only fill the disk to the last byte.

    Raises:
      OSError: ENOSPC.
    """
    if filesystem.in_bucket(path):
        return
    usage = _usage(path)
    if usage.total and usage.free < needed:  # some FUSE file systems report nothing at all
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def free_bytes(path: str) -> int:
    """Bytes that can still be written to the file system of a path, which need not exist."""
    return _usage(path).free


def _usage(path: str) -> Any:
    path = os.path.realpath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path)  # of the nearest folder: it may have a quota


def mount_of(path: str) -> str:
    """Mount point of the file system that a path lies on, or would lie on."""
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


def _number(error: BaseException | None) -> int | None:
    """Number of the OSError that an error is, names, or came from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        # As tensorstore and as safetensors have it.
        named = re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)|Os { code: (\d+)", str(error))
        if named:
            return int(next(filter(None, named.groups())))
        error = error.__cause__ or error.__context__
    return None
