"""Reads and decodes single examples on the host, and counts the unreadable ones."""

import logging
import socket
import threading
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from mae_jax.data.options import DataOptions
from mae_jax.data.sources.base import Annotation, Record, Source
from mae_jax.data.sources.cache import Cached
from mae_jax.data.storage import StorageWait
from mae_jax.data.transforms.decode import pixels
from mae_jax.data.transforms.image_headers import ImageError
from mae_jax.runtime.errors import StorageUnavailable, UsageError, one_line

log = logging.getLogger(__name__)
PADDING = -1  # a row that pads the last evaluation batch
FAILED = -2  # no candidate of the row could be read
ABSENT = -3  # the storage was unavailable
FEW = 10  # bad images that are tolerated in a set of any size, unless they are half of it
# Offsets of the examples that are tried to find out if the storage works. If more than FEW files in
# a row are gone, that is no accident.
_NEIGHBORS = (1, -1, 4, -4, FEW + 1, -FEW - 1)


class BadExamples:
    """The distinct examples of one source that this process could not read, and why.

    Args:
      source: where they come from.
      max_fraction: share of the source that may be bad. FEW examples always may, except with 0.
      share: number of examples that this process reads in a pass over the source; None: all.
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
        """Registers that an example is about to be read."""
        self._tried[index] = True

    def add(self, index: int, reason: str) -> None:
        """Counts and logs an example; once, unless it could be read in between."""
        with self._lock:
            if index in self._reasons:
                return
            self._reasons[index] = one_line(reason)
            count = len(self._reasons)
        log.warning("bad image %d: %s: %s", count, self._source.describe(index), reason)

    def remove(self, index: int) -> None:
        """No longer counts an example: it could be read."""
        if index in self._reasons:
            with self._lock:
                self._reasons.pop(index, None)
            log.info("can be read again: %s", self._source.describe(index))

    def has_room(self, index: int) -> bool:
        """Whether an example can be counted without exceeding the limit of `check`."""
        return index in self._reasons or len(self._reasons) + 1 <= self._limit()

    def _limit(self) -> float:
        few = FEW if self._max_fraction > 0 else 0
        read = max(self._share, int(np.count_nonzero(self._tried)))
        allowed = max(few, self._max_fraction * len(self._source))
        return min(allowed, max(self._max_fraction, 0.5) * read)

    def reason(self, index: int) -> str:
        """Path and reason of a counted example."""
        return f"{self._source.describe(index)}: {self._reasons.get(index, 'read well before')}"

    def check(self) -> None:
        """Raises UsageError, naming the first 20, once too large a share of the source is bad.

        With many processes, one share may be too small to contain that many. So a process also
        stops if most of what it has read (at least a whole share) is bad, which does not happen by
        chance in a set that is within the limit.
        """
        with self._lock:
            bad = sorted(self._reasons)
        if not bad:
            return
        total, limit = len(self._source), self._limit()
        if len(bad) <= limit:
            return
        files = "; ".join(self.reason(index) for index in bad[:20])
        more = f"; and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise UsageError(
            f"{len(bad)} of {total:,} images of {self._source.name} cannot be used, more than the "
            f"{int(limit):,} that --config.data.max_bad_fraction={self._max_fraction} tolerates"
            f"{self._which_host(total)} (repair or remove them, or raise it): {files}{more}"
        )

    def _which_host(self, total: int) -> str:
        if self._share == total:
            return ""
        return f" (on host {socket.gethostname()}, which reads {self._share:,} of them in a pass)"


class Loader:
    """Loads the first readable one of some candidates.

    Args:
      source: the examples.
      options: `config.data`.
      channels: C of the pixels.
      share: see `BadExamples`.
    """

    def __init__(
        self, source: Source, options: DataOptions, *, channels: int, share: int | None = None
    ):
        self.source = source
        self.channels = channels
        self.bad = BadExamples(source, max_fraction=options.max_bad_fraction, share=share)
        self._options = options
        # Cached records tell nothing about the storage.
        self._stored = source.stored if isinstance(source, Cached) else source
        self.storage = StorageWait(options.storage_wait)

    def load(self, candidates: np.ndarray) -> "Loaded":
        """The first candidate that can be read.

        Args:
          candidates: int64 [k]; the wanted example first. PADDING yields no pixels, nor does
            unavailable storage (ABSENT; `storage.gone` is set then).
        """
        if candidates[0] == PADDING:
            return Loaded(PADDING)
        for index in candidates.tolist():
            self.bad.try_example(index)
            try:
                record = self._read(index)
                image = self.decode(record, self.source.describe(index))
                _check_size(image, record.annotation)
                self.bad.remove(index)
                return Loaded(index, image, record.annotation)
            except StorageUnavailable:
                return Loaded(ABSENT)
            # Storage and decoders raise nearly any type on damaged input. Every error is logged and
            # counted, and `BadExamples.check` stops the run past the limit.
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
        # The storage returned something, which is all that matters here.
        except Exception:
            return True
        return True

    def decode(self, record: Record, name: str = "an image") -> np.ndarray:
        """Pixels [h, w, C] of a record; raises as `decode.to_array`."""
        return pixels(record.data, self._options, channels=self.channels, name=name)


def _check_size(image: np.ndarray, annotation: Annotation) -> None:
    """Raises ImageError if an image does not have the size that its annotation is made for."""
    height, width = image.shape[:2]
    expected = annotation.get("size", (height, width))
    if (height, width) == expected:
        return
    turned = ": was it annotated before it was turned? (--config.data.exif_transpose)"
    raise ImageError(
        f"{height} x {width} pixels, but its annotation says {expected[0]} x {expected[1]}"
        f"{turned if (width, height) == expected else ''}"
    )


class Loaded(NamedTuple):
    """The example loaded for one row.

    Attributes:
      used: the candidate, or PADDING, FAILED or ABSENT.
      pixels: [h, w, C] uint8 or float32, by `data.dtype`; None if there is no candidate.
      annotation: of the candidate's record; empty if there is no candidate.
    """

    used: int
    pixels: np.ndarray | None = None
    annotation: Annotation = MappingProxyType({})
