"""Small files of a workdir, which is a folder of a disk or of a bucket (gs://...).

Through etils, as Orbax does it. In a bucket a file is there whole or not at all, nothing can be
appended, and folders need not be made.
"""

import contextlib
import errno
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from mae_jax.runtime import filesystem
from mae_jax.runtime.errors import UsageError

# What TensorFlow, through which etils reaches buckets, raises -> the number that a disk would give.
_NUMBERS = {
    "NotFoundError": errno.ENOENT,
    "PermissionDeniedError": errno.EACCES,
    "UnauthenticatedError": errno.EACCES,
}


def in_bucket(path: str) -> bool:
    """Whether a path is no file system's."""
    return "://" in path


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Makes what a bucket's client raises the OSError that a disk would raise; also a decorator."""
    try:
        yield
    except Exception as error:
        # Its kinds of errors cannot have come up where it is not loaded.
        client = sys.modules.get("tensorflow")
        if client is None or not isinstance(error, client.errors.OpError):
            raise
        number = _NUMBERS.get(type(error).__name__, errno.ENETUNREACH)
        raise OSError(number, " ".join(str(error).split())[:300]) from error


def path_of(path: str) -> epath.Path:
    """As etils has it."""
    if in_bucket(path) and importlib.util.find_spec("tensorflow"):
        # etils takes it for buckets; this is the way to load it that leaves GPUs to jax.
        importlib.import_module("mae_jax.runtime.tensorflow_cpu")
    return epath.Path(path)


@os_errors()
def exists(path: str) -> bool:
    """Whether there is a file or a folder."""
    return path_of(path).exists()


@os_errors()
def read(path: str) -> bytes:
    """The content of a file; FileNotFoundError where there is none."""
    return path_of(path).read_bytes()


@os_errors()
def write(path: str, content: bytes) -> None:
    """Makes or replaces a file so that a reader never sees half of it."""
    if in_bucket(path):
        path_of(path).write_bytes(content)
        return
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yields where to write a file or a folder that takes `path` when it is whole.

    Whatever goes wrong before, a full disk or Ctrl-C, nothing of it stays, nor of what the writer
    puts beside it. A folder must not exist yet.
    """
    parent, name = os.path.split(os.path.abspath(path))
    place = os.path.join(parent, f".{name}.tmp")
    _remove_tree(place)  # of a process that was killed
    try:
        os.makedirs(place)
        yield os.path.join(place, name)
        os.replace(os.path.join(place, name), path)
    finally:
        _remove_tree(place)


def _remove_tree(folder: str) -> None:
    """Removes a folder, if it is there; threads of a failed writer may still put files into it."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(0.05)


@os_errors()
def remove(path: str) -> None:
    """Removes a file, if it is there."""
    path_of(path).unlink(missing_ok=True)


@os_errors()
def written_at(path: str) -> float:
    """When a file was written, by the clock of the disk or the bucket; FileNotFoundError."""
    return path_of(path).stat().mtime


def expand(path: str) -> str:
    """A path with `~` and `~user` replaced by the home folder; anything else stays as it is.

    Shells leave `~` alone in `--flag=~/x`, and so does Python. An existing file wins.

    Raises:
      UsageError: there is no such user.
    """
    if not path.startswith("~") or os.path.lexists(path):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UsageError(f"{path}: there is no such user; write ./{path} otherwise")
    return expanded


def write_json(path: str, value: Any) -> None:
    """Writes JSON so that a reader never sees half a file."""
    text = json.dumps(value, indent=2, default=list) + "\n"
    filesystem.write(path, text.encode())
