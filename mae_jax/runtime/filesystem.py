"""Small files of a workdir, which is a folder on a disk or in a bucket (gs://...).

Buckets are accessed through etils, as in Orbax. Files in a bucket appear atomically, cannot be
appended to, and need no folders to be created.
"""

import contextlib
import errno
import importlib.metadata
import importlib.util
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from mae_jax.runtime.errors import UsageError, one_line

# Errors of TensorFlow, through which etils accesses buckets -> errno of the same error on a disk.
_ERRNOS = {
    "NotFoundError": errno.ENOENT,
    "PermissionDeniedError": errno.EACCES,
    "UnauthenticatedError": errno.EACCES,
}
PROBE = ".probe"  # name of the file that `probe` writes


def in_bucket(path: str) -> bool:
    """Whether a path is a URL rather than a path of a file system."""
    return "://" in path


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Turns errors of a bucket's client into the OSErrors of a disk; also a decorator."""
    try:
        yield
    except Exception as error:
        # If TensorFlow is not loaded, the error is not one of its own.
        client = sys.modules.get("tensorflow")
        if client is None or not isinstance(error, client.errors.OpError):
            raise
        number = _ERRNOS.get(type(error).__name__, errno.ENETUNREACH)
        raise OSError(number, one_line(error)) from error


def path_of(path: str) -> epath.Path:
    """The path as an object of etils."""
    if in_bucket(path) and importlib.util.find_spec("tensorflow"):
        # etils uses TensorFlow for buckets; this module loads it without taking the GPUs.
        importlib.import_module("mae_jax.runtime.tensorflow_cpu")
    return epath.Path(path)


@os_errors()
def exists(path: str) -> bool:
    """Whether the path is an existing file or folder."""
    return path_of(path).exists()


@os_errors()
def read(path: str) -> bytes:
    """The content of a file; raises FileNotFoundError if there is none."""
    return path_of(path).read_bytes()


@os_errors()
def write(path: str, content: bytes, *, shared: bool = False) -> None:
    """Creates or replaces a file atomically; `shared` as in `replacing`."""
    if in_bucket(path):
        path_of(path).write_bytes(content)
        return
    with replacing(path, shared=shared) as temporary, open(temporary, "wb") as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: str, *, shared: bool = False) -> Iterator[str]:
    """Yields a temporary path, and renames it to `path` once the block has completed.

    If the block fails (a full disk, Ctrl-C), everything it wrote is removed.

    Args:
      path: of a file, or of a folder that does not exist yet.
      shared: other processes may write the same path at the same time. Leftovers of a killed
        process then stay, since they look like work in progress.
    """
    parent, name = os.path.split(os.path.abspath(path))
    if shared:
        os.makedirs(parent, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=parent)
    else:
        folder = os.path.join(parent, f".{name}.tmp")
        _remove_tree(folder)  # left by a process that was killed
    try:
        os.makedirs(folder, exist_ok=shared)
        yield os.path.join(folder, name)
        os.replace(os.path.join(folder, name), path)
    finally:
        _remove_tree(folder)


def _remove_tree(folder: str) -> None:
    """Removes a folder if it exists, even while threads of a failed writer still add files."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(0.05)


def probe(folder: str, size: int = 0) -> float:
    """Writes a file into a folder and removes it, to check that the folder is writable.

    Args:
      folder: on a disk or in a bucket.
      size: bytes to write.

    Returns:
      When the file was written, by the clock of the disk or the bucket.

    Raises:
      OSError: the folder is not writable.
    """
    if in_bucket(folder):
        path = f"{folder}/{PROBE}-{secrets.token_hex(8)}"  # other processes may be probing too
        write(path, bytes(size))
        written = written_at(path)
        remove(path)
        return written
    path = os.path.join(folder, PROBE)
    try:
        with open(path, "wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_mtime
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


@os_errors()
def remove(path: str) -> None:
    """Removes a file if it exists."""
    path_of(path).unlink(missing_ok=True)


@os_errors()
def written_at(path: str) -> float:
    """When a file was written, by the clock of the disk or the bucket.

    Raises:
      FileNotFoundError: there is no such file.
    """
    return path_of(path).stat().mtime


def expand(path: str) -> str:
    """Replaces `~` and `~user` with the home folder, unless a file of that name exists.

    Neither shells nor Python expand `~` in `--flag=~/x`.

    Raises:
      UsageError: there is no such user.
    """
    if not path.startswith("~") or os.path.lexists(path):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UsageError(f"{path}: there is no such user; write ./{path} for a file of that name")
    return expanded


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file atomically."""
    text = json.dumps(value, indent=2, default=list) + "\n"
    write(path, text.encode())
