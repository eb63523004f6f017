"""Reads TIFF files as stored: any number of bands, any type of values, either byte order.

Pillow treats bands beyond the third in its own way and reduces 16-bit color to 8 bits; tifffile
does neither. However, it decompresses without a limit, so Pillow's libtiff decompresses strips and
tiles: as many bytes as the header implies, and no more.
"""

import io
import logging
import math
import struct
from typing import Any

import numpy as np

from mae_jax.data.transforms.image_headers import (
    ORIENTATION,
    ImageError,
    Stored,
    check_size,
    xmp_orientation,
)

_XMP = 700  # tag
_MIN_IS_WHITE, _RGB = 0, 2  # photometric interpretation; 1: black is zero
_PALETTE = 3
_COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)  # none, LZW, deflate, PackBits, LZMA, zstd

# It logs every odd tag of every file, without the file's name; it raises what matters.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def is_tiff(data: bytes) -> bool:
    """Whether bytes begin like a TIFF or BigTIFF file."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff(data: bytes, *, as_stored: bool) -> Stored | None:
    """Reads the first image of a TIFF file.

    Args:
      data: the file.
      as_stored: return the samples whatever they mean. Otherwise only gray and RGB are read, and
        gray with white as zero is inverted.

    Returns:
      The image; None, if `as_stored` is False and its samples need a conversion (palette, CMYK,
      YCbCr, fewer than 8 bits, JPEG compression, ...), which Pillow does.

    Raises:
      ImageError: too large, or samples that cannot be read as they are stored.
      Exception: whatever tifffile and Pillow raise on damaged files.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        check_size(*page.shape)
        check_size(*page.chunks)
        if not _readable(page, as_stored=as_stored):
            if as_stored:
                raise ImageError(_refusal(page))
            return None
        samples, color = _samples(page, data), _colors(page)
        inverted = page.photometric == _MIN_IS_WHITE and color == 1 and not as_stored
        if inverted and samples.dtype.kind == "u":
            samples[..., 0] = np.iinfo(samples.dtype).max - samples[..., 0]
        orientation = page.tags.valueof(ORIENTATION) or xmp_orientation(page.tags.valueof(_XMP))
        return Stored(samples, color, orientation)


def _readable(page: Any, *, as_stored: bool) -> bool:
    meaning = page.photometric != _PALETTE if as_stored else page.photometric <= _RGB
    return (
        meaning
        and page.compression in _COMPRESSIONS
        and page.bitspersample in (8, 16, 32, 64)
        and page.fillorder == 1
        and page.axes in ("YX", "YXS", "SYX")
    )


def _refusal(page: Any) -> str:
    photometric, compression = (
        getattr(value, "name", str(value)) for value in (page.photometric, page.compression)
    )
    return (
        f"a TIFF of {page.bitspersample}-bit {photometric} samples with compression {compression}: "
        "save its bands with 8, 16 or 32 bits, uncompressed or with deflate"
    )


def _colors(page: Any) -> int:
    if page.photometric == _RGB:
        return min(3, page.samplesperpixel)
    # Two bands are read as gray and alpha; more than two are bands of data.
    return 1 if page.samplesperpixel <= 2 else page.samplesperpixel


def _samples(page: Any, data: bytes) -> np.ndarray:
    """[h, w, S], put together from strips or tiles."""
    packed, page.compression = page.compression, 1  # so that `decode` only undoes the other steps
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    number = math.prod(page.chunked)
    if len(pieces) < number:
        raise ImageError(f"cut short: {len(pieces)} of {number} strips or tiles")
    planes, _, height, width, samples = page.shaped
    result = np.full((planes, height, width, samples), page.nodata, page.dtype)
    for index, (start, count) in enumerate(pieces[:number]):
        if not count:
            continue  # a hole
        piece = data[start : start + count]
        if packed != 1:
            _, _, shape = page.decode(None, index)
            piece = _unpacked(piece, packed, math.prod(shape) * page.dtype.itemsize)
        array, (plane, _, top, left, _), _ = page.decode(piece, index)
        place = result[plane, top : top + array.shape[1], left : left + array.shape[2]]
        place[:] = array[0, : place.shape[0], : place.shape[1]]
    return result[0] if planes == 1 else np.moveaxis(result[..., 0], 0, -1)


def _unpacked(piece: bytes, compression: int, size: int) -> bytes:
    """At most `size` bytes of a strip or tile, decompressed by Pillow's libtiff as a gray image."""
    from PIL import Image

    start = 8 + 2 + 9 * 12 + 4  # after the header and a directory of nine entries
    tags = {256: size, 257: 1, 258: 8, 259: compression, 262: 1, 273: start, 277: 1, 278: 1}
    tags[279] = len(piece)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    try:
        image = Image.open(io.BytesIO(header + piece), formats=["TIFF"])
    except Image.DecompressionBombError as error:
        raise ImageError(f"a strip or tile of {size:,} bytes: save smaller ones") from error
    return image.tobytes()
