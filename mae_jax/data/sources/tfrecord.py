"""Random access to the records of TFRecord files, by an index of their offsets."""

import concurrent.futures
import io
import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mae_jax.runtime import filesystem
from mae_jax.runtime.errors import DataMissing, UsageError

log = logging.getLogger(__name__)

# A TFRecord is: uint64 length, uint32 checksum of it, the data, uint32 checksum of the data.
_HEADER, _FOOTER = 12, 4
_THREADS = 16


class Part(NamedTuple):
    """Some records of one file: `take` of them after the first `skip`."""

    path: str
    skip: int
    take: int
    in_file: int  # number of records in the file


class TFRecordReader:
    """Records by number over several files. Safe to use from any thread.

    Files are opened for every read, which takes microseconds and allows any number of files.
    Buckets (`gs://...`) are read through TensorFlow; that path was only tested on local files.
    """

    def __init__(self, parts: Sequence[Part], *, cache: epath.Path | None):
        """Reads the index, or builds it: one pass over the record headers of each file.

        Raises:
          UsageError: a file is missing, truncated, or not the one that the index was built from.
        """
        self._parts = parts
        self._ends = np.cumsum([part.take for part in parts])
        paths = sorted({part.path for part in parts})
        sizes = np.array([_size(path) for path in paths], np.int64)
        index = _read_index(cache, paths, sizes) if cache is not None else None
        if index is None:
            log.info("indexing the records of %d TFRecord files", len(paths))
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                index = dict(zip(paths, pool.map(_offsets, paths, sizes.tolist()), strict=True))
            if cache is not None:
                _write_index(cache, index, sizes)
        for part in parts:
            if len(index[part.path]) - 1 != part.in_file:
                raise UsageError(
                    f"{part.path} contains {len(index[part.path]) - 1} records, but its "
                    f"dataset_info.json says {part.in_file}: prepare or copy the data set again"
                )
        self._index = index

    def __len__(self) -> int:
        return int(self._ends[-1])

    @filesystem.os_errors()
    def __getitem__(self, number: int) -> bytes:
        """The data of one record.

        Raises:
          OSError: the storage cannot be read; without an errno, the file is shorter than before.
        """
        which = int(np.searchsorted(self._ends, number, side="right"))
        part = self._parts[which]
        row = number - int(self._ends[which]) + part.take + part.skip
        start, end = self._index[part.path][row : row + 2].tolist()
        with _open(part.path) as file:
            file.seek(start + _HEADER)
            data = file.read(end - start - _HEADER - _FOOTER)
        if len(data) != end - start - _HEADER - _FOOTER:
            raise OSError(f"{part.path} ends early")
        return data


def _is_remote(path: str) -> bool:
    return "://" in path


def _open(path: str) -> Any:
    if _is_remote(path):
        from mae_jax.runtime.tensorflow_cpu import tf

        return tf.io.gfile.GFile(path, "rb")
    return open(path, "rb", buffering=0)


@filesystem.os_errors()
def _size(path: str) -> int:
    try:
        return epath.Path(path).stat().length
    except FileNotFoundError as error:
        raise DataMissing(f"cannot read the data file {path}: {error}") from error
    except PermissionError as error:
        raise UsageError(f"cannot read the data file {path}: {error}") from error


@filesystem.os_errors()
def _offsets(path: str, size: int) -> np.ndarray:
    """Offset of each record of a file, and of the file's end: int64 [records + 1]."""
    offsets, position = [0], 0
    try:
        opened = _open(path)
    except (FileNotFoundError, PermissionError) as error:
        raise UsageError(f"cannot read the data file {path}: {error.strerror}") from error
    with opened as file:
        while position < size:
            file.seek(position)
            header = file.read(8)
            if len(header) == 8:
                position += _HEADER + struct.unpack("<Q", header)[0] + _FOOTER
            if len(header) < 8 or position > size:
                raise UsageError(f"{path} is cut short: prepare or copy the data set again")
            offsets.append(position)
    return np.array(offsets, np.int64)


def _write_index(cache: epath.Path, index: dict[str, np.ndarray], sizes: np.ndarray) -> None:
    content = io.BytesIO()
    np.savez(
        content,
        names=np.array([os.path.basename(path) for path in index]),
        sizes=sizes,
        counts=np.array([len(offsets) for offsets in index.values()]),
        offsets=np.concatenate(list(index.values())),
    )
    filesystem.write(str(cache), content.getvalue(), shared=True)


def _read_index(
    cache: epath.Path, paths: list[str], sizes: np.ndarray
) -> dict[str, np.ndarray] | None:
    """The kept index; None if there is none, or another process just removed it."""
    try:
        content = filesystem.read(str(cache))
    except FileNotFoundError:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as content:
            kept = {name: content[name] for name in ("names", "sizes", "counts", "offsets")}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"the index {cache} is damaged ({error}): delete it") from error
    names = [os.path.basename(path) for path in paths]
    if kept["names"].tolist() != names or not np.array_equal(kept["sizes"], sizes):
        raise UsageError(
            f"the data files {os.path.dirname(paths[0])} are not those this run started with "
            f"({len(names)} files now, {len(kept['names'])} then, or other sizes); restore "
            f"them, or use a new --workdir (to accept the change delete {cache})"
        )
    pieces = np.split(kept["offsets"], np.cumsum(kept["counts"])[:-1])
    return dict(zip(paths, pieces, strict=True))
