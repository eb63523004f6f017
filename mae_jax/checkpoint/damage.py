"""What proves that a checkpoint is damaged, when reading it fails.

Orbax and tensorstore raise many kinds of errors, for damaged data as for everything else: a device,
memory, the network, another version of Orbax. Three of them prove damage: a missing file, JSON that
cannot be parsed, and tensorstore's refusal to decode what it has read. A change in the small files
that Orbax parses itself can lead to any error; so they have checksums, which are compared when
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

SMALL_FILES = "small_files.json"  # of a checkpoint: SHA-256 by path, sealed
_PLACES = ("state", "state/array_metadatas")  # what Orbax reads beside the arrays
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_MISSING_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# How the texts of tensorstore begin for what it cannot find or decode; the last has no code.
_REFUSED = re.compile(r"(DATA_LOSS|OUT_OF_RANGE|NOT_FOUND|FAILED_PRECONDITION): |Error \w+ing ")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, the one it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def proves(error: BaseException, folder: str) -> bool:
    """Whether an error says that data in the folder are missing or cannot be decoded."""
    return any(_proves(cause, folder) for cause in causes(error))


def _proves(error: BaseException, folder: str) -> bool:
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return True
    if isinstance(error, _MISSING_ERRORS):  # a bucket's have no file name
        return error.filename is None or str(error.filename).startswith(folder)
    text = str(error)
    if not isinstance(error, ValueError) or not _REFUSED.match(text):
        return False
    # The same words may come from a disk that does not answer.
    number = re.search(r"\[os_error_code='(\d+)'\]", text)
    return number is None or int(number[1]) in _MISSING


def record_small_files(folder: str) -> None:
    """Writes checksums of the small files of a complete checkpoint into it."""
    text = json.dumps(checksums.add_digest(_sums(folder)))
    filesystem.write(f"{folder}/{SMALL_FILES}", text.encode())


def changed_files(folder: str) -> list[str]:
    """How the small files of a checkpoint differ from those that were saved, a text each.

    Checkpoints of earlier versions have no checksums of these files: nothing is found there.
    """
    # Reading has just failed for some reason, which may well be in the way here, too.
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(filesystem.read(f"{folder}/{SMALL_FILES}"))
        saved, now = checksums.check_digest(content), _sums(folder)
        if saved == content:  # not sealed
            return []
        missing = [f"{name} is missing" for name in saved if name not in now]
        other = [name for name in saved.keys() & now.keys() if saved[name] != now[name]]
        return missing + [f"{name} has another checksum than when it was saved" for name in other]
    return []


@filesystem.os_errors()
def _sums(folder: str) -> dict[str, str]:
    """SHA-256 of the small files of a checkpoint, by path."""
    sums = {}
    for place in _PLACES:
        top = filesystem.path_of(folder) / place
        for file in top.iterdir() if top.is_dir() else ():
            if not file.is_dir():
                sums[f"{place}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return sums
