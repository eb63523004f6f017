"""A file of records that tolerates a disk that is full for a while."""

import contextlib
import io

BUFFER_BYTES = 2**26  # memory for records that cannot be written


class RecordFile:
    """Appends records to a file, in the caller's thread.

    Records that cannot be written are buffered in memory and written before the next record. A
    partially written record is truncated, so that readers find only complete records.

    Args:
      path: created with the first record. The file is opened for each write: a network file system
        may report an error only on close, and a handle may go stale.
      first: first record of a new file.

    Attributes:
      lost: number of records dropped because the buffer was full.
    """

    def __init__(self, path: str, first: bytes = b""):
        self._path, self._buffer = path, bytearray(first)
        self._end: int | None = None  # end of the complete records; None until the first write
        self.lost = 0

    @property
    def waiting(self) -> bool:
        """Whether records are buffered."""
        return bool(self._buffer)

    def append(self, record: bytes) -> None:
        """Writes the buffered records and this one.

        Raises:
          OSError: they could not be written; the record is buffered.
        """
        if len(self._buffer) + len(record) <= BUFFER_BYTES:
            self._buffer += record
        else:
            self.lost += 1
        self.flush()

    def flush(self) -> None:
        """Writes all buffered records or none.

        Raises:
          OSError: they could not be written and stay buffered.
        """
        if not self._buffer:
            return
        with open(self._path, "ab", buffering=0) as file:
            size = file.seek(0, io.SEEK_END)
            self._end = size if self._end is None else min(size, self._end)
            if size > self._end:
                file.truncate(self._end)  # could not be truncated after the last failure
            try:
                _write_all(file, self._buffer)
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(self._end)
                raise
        self._end += len(self._buffer)
        self._buffer = bytearray()


def _write_all(file: io.FileIO, data: bytearray) -> None:
    """Continues after a short write; the next call raises its cause."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
