"""Reads one example on the host and keeps count of those that cannot be read."""

import logging
import socket
import threading
from typing import NamedTuple

import numpy as np

from mae_jax.data import decode
from mae_jax.data.options import DataOptions
from mae_jax.data.source import Record, Source
from mae_jax.errors import UsageError

log = logging.getLogger(__name__)

PADDING = -1  # a row that only fills up the last evaluation batch
FAILED = -2  # no candidate of the row could be read


def pixels(
    data: bytes | np.ndarray, options: DataOptions, *, channels: int, name: str = "an image"
) -> np.ndarray:
    """`decode.to_array` as `config.data` wants it."""
    return decode.to_array(
        data,
        channels=channels,
        dtype=options.dtype,
        exif_transpose=options.exif_transpose,
        name=name,
    )


class BadExamples:
    """The distinct examples of one source that this process could not read, and why.

    Args:
      source: where they come from.
      max_fraction: share of the source that may be bad.
      share: of a pass over the source that this process reads, in examples; None: all of it.
    """

    def __init__(self, source: Source, *, max_fraction: float, share: int | None = None):
        self._source = source
        self._max_fraction = max_fraction
        self._share = len(source) if share is None else share
        self._tried = np.zeros(len(source), bool)
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, index: int) -> bool:
        return index in self._reasons

    def try_example(self, index: int) -> None:
        """Notes that an example is read."""
        self._tried[index] = True

    def add(self, index: int, reason: str) -> None:
        """Counts and logs an example, once."""
        with self._lock:
            if index in self._reasons:
                return
            self._reasons[index] = " ".join(reason.split())
            count = len(self._reasons)
        log.warning("bad image %d: %s: %s", count, self._source.describe(index), reason)

    def reason(self, index: int) -> str:
        """Path and reason of a counted example."""
        return f"{self._source.describe(index)}: {self._reasons.get(index, 'read well before')}"

    def check(self) -> None:
        """Raises UsageError, with the first 20, once too large a share of the source is bad.

        A process among many would take long to find so many in its own share, or never do if the
        share is smaller: it also stops where most of what it has read, a whole share at least, is
        bad. That cannot happen by chance to a set that is within the limit.
        """
        with self._lock:
            bad = sorted(self._reasons)
        if not bad:
            return
        total, most = len(self._source), max(self._max_fraction, 0.5)
        read = max(self._share, int(np.count_nonzero(self._tried)))
        if len(bad) <= min(self._max_fraction * total, most * read):
            return
        files = "; ".join(self.reason(index) for index in bad[:20])
        more = f"; and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise UsageError(
            f"{len(bad)} of {total:,} images of {self._source.name} cannot be used, more than "
            f"--config.data.max_bad_fraction={self._max_fraction} allows{self._whose(total)} (mend "
            f"or remove them, or raise it): {files}{more}"
        )

    def _whose(self, total: int) -> str:
        if self._share == total:
            return ""
        return f" (on host {socket.gethostname()}, which reads {self._share:,} of them in a pass)"


class Loader:
    """From candidate indices to the pixels of the first that can be read.

    Arguments are those of `pixels`, and `share` of `BadExamples`.
    """

    def __init__(
        self, source: Source, options: DataOptions, *, channels: int, share: int | None = None
    ):
        self.source = source
        self.channels = channels
        self.bad = BadExamples(source, max_fraction=options.max_bad_fraction, share=share)
        self._options = options

    def load(self, candidates: np.ndarray) -> "Loaded":
        """The first candidate that can be read.

        Args:
          candidates: int64 [k]; the wanted example first. PADDING yields no pixels.
        """
        if candidates[0] == PADDING:
            return Loaded(PADDING)
        for index in candidates.tolist():
            self.bad.try_example(index)
            try:
                (record,) = self.source.read([index])
                image = self.decode(record, self.source.describe(index))
                return Loaded(index, image, record.label)
            # Storage and decoders raise nearly any type on damaged input. Nothing is lost: each
            # one is logged and counted, and `BadExamples.check` stops the run past the limit.
            except Exception as error:
                self.bad.add(index, f"{type(error).__name__}: {error}")
        return Loaded(FAILED)

    def decode(self, record: Record, name: str = "an image") -> np.ndarray:
        """Pixels [h, w, C] of a record; raises as `decode.to_array`."""
        return pixels(record.data, self._options, channels=self.channels, name=name)


class Loaded(NamedTuple):
    """What was loaded for one row.

    Attributes:
      used: the candidate taken, PADDING or FAILED.
      pixels: [h, w, C] uint8 or float32, as `data.dtype` says; None for PADDING and FAILED.
      label: -1 for none.
    """

    used: int
    pixels: np.ndarray | None = None
    label: int = -1
