"""Decides whether a failed read proves that a checkpoint is damaged.

Orbax and tensorstore raise many types of errors, not only for damaged data: also for devices,
memory, the network, or another version of Orbax. Three errors prove damage: a missing file, JSON
that cannot be parsed, and data that tensorstore cannot decode. Changes in the small files that
Orbax parses itself can cause any error, so these files have checksums, which are compared when
reading fails.
"""

import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Iterator

from mae_jax.checkpoint import checksums
from mae_jax.runtime import filesystem

SMALL_FILES = "small_files.json"  # SHA-256 by path, with a digest of its own content
_SMALL_FILE_FOLDERS = ("state", "state/array_metadatas")
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_MISSING_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# Prefixes of tensorstore's messages for data it cannot find or decode; the last has no code.
_UNREADABLE = re.compile(r"(DATA_LOSS|OUT_OF_RANGE|NOT_FOUND|FAILED_PRECONDITION): |Error \w+ing ")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def is_proof(error: BaseException, folder: str) -> bool:
    """Whether an error proves that data in the folder are missing or cannot be decoded."""
    return any(_is_proof(cause, folder) for cause in causes(error))


def _is_proof(error: BaseException, folder: str) -> bool:
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return True
    if isinstance(error, _MISSING_ERRORS):  # errors of a bucket have no file name
        return error.filename is None or str(error.filename).startswith(folder)
    text = str(error)
    if not isinstance(error, ValueError) or not _UNREADABLE.match(text):
        return False
    # A disk that does not respond causes the same messages, with another error code.
    number = re.search(r"\[os_error_code='(\d+)'\]", text)
    return number is None or int(number[1]) in _MISSING


def record_small_files(folder: str) -> None:
    """Writes the checksums of a complete checkpoint's small files into its folder."""
    text = json.dumps(checksums.add_digest(_sums(folder)))
    filesystem.write(f"{folder}/{SMALL_FILES}", text.encode())


def changed_files(folder: str) -> list[str]:
    """Lists the changes in a checkpoint's small files since it was saved, as text.

    Empty for checkpoints of earlier versions, which have no checksums of these files.
    """
    # Reading has just failed; whatever the reason, it may affect these files too.
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(filesystem.read(f"{folder}/{SMALL_FILES}"))
        saved, actual = checksums.check_digest(content), _sums(folder)
        if saved == content:  # it has no digest
            return []
        missing = [f"{name} is missing" for name in saved if name not in actual]
        changed = [name for name in saved.keys() & actual.keys() if saved[name] != actual[name]]
        return missing + [f"{name} does not match its checksum" for name in changed]
    return []


@filesystem.os_errors()
def _sums(folder: str) -> dict[str, str]:
    """SHA-256 of a checkpoint's small files, by path."""
    sums = {}
    for name in _SMALL_FILE_FOLDERS:
        parent = filesystem.path_of(folder) / name
        for file in parent.iterdir() if parent.is_dir() else ():
            if not file.is_dir():
                sums[f"{name}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return sums
