"""Reads one example on the host and keeps count of those that cannot be read."""

import logging
import socket
import threading
from typing import NamedTuple

import numpy as np

from mae_jax.data.options import DataOptions
from mae_jax.data.sources.base import Record, Source
from mae_jax.data.sources.cache import Cached
from mae_jax.data.storage import StorageWait
from mae_jax.data.transforms.decode import pixels
from mae_jax.runtime.errors import StorageUnavailable, UsageError, one_line

log = logging.getLogger(__name__)
PADDING = -1  # a row that only fills up the last evaluation batch
FAILED = -2  # no candidate of the row could be read
ABSENT = -3  # the storage was away: nothing is known of the row
FEW = 10  # bad images that are tolerated in a set of any size, unless they are half of it
# Where the examples are whose files tell whether the storage is there. More than FEW files in a row
# that are gone are no accident.
_NEIGHBORS = (1, -1, 4, -4, FEW + 1, -FEW - 1)


class BadExamples:
    """The distinct examples of one source that this process could not read, and why.

    Args:
      source: where they come from.
      max_fraction: share of the source that may be bad; FEW examples always may, but with 0 none.
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
        """Counts and logs an example, once, until it can be read."""
        with self._lock:
            if index in self._reasons:
                return
            self._reasons[index] = one_line(reason)
            count = len(self._reasons)
        log.warning("bad image %d: %s: %s", count, self._source.describe(index), reason)

    def remove(self, index: int) -> None:
        """Forgets that an example could not be read: now it was."""
        if index in self._reasons:
            with self._lock:
                self._reasons.pop(index, None)
            log.info("can be read again: %s", self._source.describe(index))

    def has_room(self, index: int) -> bool:
        """Whether an example may be counted without reaching the limit of `check`."""
        return index in self._reasons or len(self._reasons) + 1 <= self._most()

    def _most(self) -> float:
        few = FEW if self._max_fraction > 0 else 0
        read = max(self._share, int(np.count_nonzero(self._tried)))
        allowed = max(few, self._max_fraction * len(self._source))
        return min(allowed, max(self._max_fraction, 0.5) * read)

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
        total, most = len(self._source), self._most()
        if len(bad) <= most:
            return
        files = "; ".join(self.reason(index) for index in bad[:20])
        more = f"; and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise UsageError(
            f"{len(bad)} of {total:,} images of {self._source.name} cannot be used, more than the "
            f"{int(most):,} that --config.data.max_bad_fraction={self._max_fraction} tolerates"
            f"{self._whose(total)} (repair or remove them, or raise it): {files}{more}"
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
        # What is kept in memory says nothing about the storage.
        self._stored = source.stored if isinstance(source, Cached) else source
        self.storage = StorageWait(options.storage_wait)

    def load(self, candidates: np.ndarray) -> "Loaded":
        """The first candidate that can be read.

        Args:
          candidates: int64 [k]; the wanted example first. PADDING yields no pixels, nor does
            storage that stays away (ABSENT; `storage.gone` is set then).
        """
        if candidates[0] == PADDING:
            return Loaded(PADDING)
        for index in candidates.tolist():
            self.bad.try_example(index)
            try:
                record = self._read(index)
                image = self.decode(record, self.source.describe(index))
                self.bad.remove(index)
                return Loaded(index, image, record.label)
            except StorageUnavailable:
                return Loaded(ABSENT)
            # Storage and decoders raise nearly any type on damaged input. Nothing is lost: each
            # one is logged and counted, and `BadExamples.check` stops the run past the limit.
            except Exception as error:
                self.bad.add(index, f"{type(error).__name__}: {error}")
        return Loaded(FAILED)

    def _read(self, index: int) -> Record:
        (record,) = self.storage.read(
            lambda: self.source.read([index]),
            what=self.source.describe(index),
            lost=lambda _: self.bad.has_room(index) and self._has_neighbors(index),
        )
        return record

    def _has_neighbors(self, index: int) -> bool:
        """Whether the storage has files near an example that can be read."""
        total = len(self._stored)
        return any(self._can_read((index + i) % total) for i in _NEIGHBORS)

    def _can_read(self, index: int) -> bool:
        try:
            self._stored.read([index])
        except OSError as error:
            return error.errno is None
        # The storage gave something, whatever it is: that alone is the question.
        except Exception:
            return True
        return True

    def decode(self, record: Record, name: str = "an image") -> np.ndarray:
        """Pixels [h, w, C] of a record; raises as `decode.to_array`."""
        return pixels(record.data, self._options, channels=self.channels, name=name)


class Loaded(NamedTuple):
    """What was loaded for one row.

    Attributes:
      used: the candidate taken, PADDING, FAILED or ABSENT.
      pixels: [h, w, C] uint8 or float32, as `data.dtype` says; None where there is no candidate.
      label: -1 for none.
    """

    used: int
    pixels: np.ndarray | None = None
    label: int = -1
