"""Sizes that files claim, checked before anything of such a size is made (docs/security.md)."""

import math
import zipfile
from typing import IO

import numpy as np

# What an archive that may be compressed can hold, for each of its bytes and besides. Weights hardly
# shrink, but for arrays that are all zero; a bomb grows a thousandfold.
_RATIO, _BESIDES = 20, 2**26


def check_npy(file: IO[bytes], size: int) -> tuple[int, ...]:
    """Reads the header of a .npy file and compares it with the file; nothing is unpickled.

    Args:
      file: stands at its beginning, then behind the header.
      size: bytes of the whole file.

    Returns:
      The shape.

    Raises:
      ValueError: no plain numbers, or fewer than the header says.
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
        raise ValueError("holds Python objects, which could run code and are never loaded")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"cut short: there is less in it than {shape} of {dtype}")
    return shape


def check_zip(archive: zipfile.ZipFile, size: int, *, compressed: bool) -> None:
    """Compares what an archive says it holds with its own size.

    Args:
      archive: opened for reading, which reads its directory alone.
      size: bytes of the file.
      compressed: whether its entries may be compressed; `zipfile` never reads more of one than the
        directory says.

    Raises:
      ValueError: it could not hold what it says, or would grow out of all proportion.
    """
    entries = archive.infolist()
    if not compressed and any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise ValueError("refused: its entries are compressed, as PyTorch never does")
    limit = _RATIO * size + _BESIDES if compressed else size
    total = sum(entry.file_size for entry in entries)
    if total > limit:
        raise ValueError(f"refused: an archive of {size:,} bytes that unpacks to {total:,}")
