"""Checks of the sizes that files declare, before anything is allocated (docs/security.md)."""

import math
import zipfile
from typing import IO

import numpy as np

# Limit of a compressed archive's unpacked size: a ratio, plus a constant. Weights hardly compress,
# apart from arrays of zeros; a zip bomb grows a thousandfold.
_RATIO, _EXTRA_BYTES = 20, 2**26


def check_npy(file: IO[bytes], size: int) -> tuple[int, ...]:
    """Reads the header of a .npy file and checks it against the file size; nothing is unpickled.

    Args:
      file: positioned at its start; left positioned after the header.
      size: size of the whole file in bytes.

    Returns:
      The shape.

    Raises:
      ValueError: the array is not numeric, or larger than the file.
    """
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"a .npy file of version {version}, which is not for plain numbers")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("contains Python objects, which could run code and are never loaded")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"cut short: it has less data than {shape} of {dtype}")
    return shape


def check_zip(archive: zipfile.ZipFile, size: int, *, compressed: bool) -> None:
    """Checks the declared sizes of an archive's entries against the size of the file.

    Args:
      archive: opened for reading, which reads only its directory.
      size: size of the file in bytes.
      compressed: whether entries may be compressed; `zipfile` never reads more of an entry than the
        directory declares.

    Raises:
      ValueError: the declared sizes are impossible or out of proportion.
    """
    entries = archive.infolist()
    if not compressed and any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise ValueError("refused: its entries are compressed, as PyTorch never does")
    limit = _RATIO * size + _EXTRA_BYTES if compressed else size
    total = sum(entry.file_size for entry in entries)
    if total > limit:
        raise ValueError(f"refused: an archive of {size:,} bytes that unpacks to {total:,}")
