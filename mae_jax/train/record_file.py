"""A file that grows by whole records, on a disk that may be full for a while."""

import contextlib
import io

WAITING_BYTES = 2**26  # of memory for what cannot be written


class RecordFile:
    """Appends records to a file, in the caller's thread.

    What cannot be written waits in memory and is written before the next record. The part of it
    that a full disk still took is cut off again, so that a reader finds only whole records.

    Args:
      path: created with the first record. It is opened for each write: a network file system may
        report an error only when the file is closed, and a handle may go stale.
      first: record that a new file begins with.

    Attributes:
      lost: records that were dropped because too many were waiting.
    """

    def __init__(self, path: str, first: bytes = b""):
        self._path, self._waiting = path, bytearray(first)
        self._end: int | None = None  # of the whole records; None: of whatever is there at first
        self.lost = 0

    @property
    def waiting(self) -> bool:
        """Whether something is not written yet."""
        return bool(self._waiting)

    def append(self, record: bytes) -> None:
        """Writes a record, after those that wait.

        Raises:
          OSError: it waits now.
        """
        if len(self._waiting) + len(record) <= WAITING_BYTES:
            self._waiting += record
        else:
            self.lost += 1
        self.flush()

    def flush(self) -> None:
        """Writes what waits, all or nothing.

        Raises:
          OSError: it still waits.
        """
        if not self._waiting:
            return
        with open(self._path, "ab", buffering=0) as file:
            size = file.seek(0, io.SEEK_END)
            self._end = size if self._end is None else min(size, self._end)
            if size > self._end:
                file.truncate(self._end)  # what could not be cut off when it failed
            try:
                _write_all(file, self._waiting)
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(self._end)
                raise
        self._end += len(self._waiting)
        self._waiting = bytearray()


def _write_all(file: io.FileIO, data: bytearray) -> None:
    """Writes on after a short write; the call after it says what is wrong."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
