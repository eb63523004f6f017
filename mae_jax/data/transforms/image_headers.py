"""Reads the headers of image files: size, bit depth and orientation.

Headers are not trusted: sizes are checked before anything is decoded, and unreadable metadata never
make the pixels unusable.
"""

import math
import re
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

# Of h * w * C, before anything is decoded. Pillow's own limit for RGB: 178,956,970 pixels.
MAX_VALUES = 2**29
PNG = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112  # tag of EXIF and TIFF

# Orientation -> whether rows and columns are reversed, and whether they are then swapped.
_TURNS = {
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_KEPT_CHUNKS = (b"tRNS", b"eXIf")  # of PNG, in addition to critical ones
_KEPT_SEGMENTS = (0xE0, 0xE1, 0xEE)  # of JPEG's APPn: JFIF, EXIF and Adobe (the color transform)


class ImageError(ValueError):
    """An image that cannot be used; the text gives the reason and, if there is one, a remedy."""


class Stored(NamedTuple):
    """An image as decoded, with its values unchanged.

    Attributes:
      samples: [h, w, S].
      color: how many of the S bands are colors (1: gray, 3: RGB; the others are alpha or similar);
        S if they are bands of data.
      orientation: EXIF value; not yet applied.
      white: the value of white, for uint16 samples.
    """

    samples: np.ndarray
    color: int
    orientation: int = 1
    white: int = 65535


def check_size(*shape: int) -> None:
    """Raises ImageError if an array of this shape is larger than any image that is decoded."""
    if math.prod(shape) > MAX_VALUES:
        raise ImageError(
            f"too large: {' x '.join(map(str, shape))}, more than {MAX_VALUES:,} values (according "
            "to its header; nothing was decoded)"
        )


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """[h, w, ...], turned by an EXIF orientation; values other than 2 to 8 change nothing."""
    rows, columns, swap = _TURNS.get(orientation, (False, False, False))
    array = array[:: -1 if rows else 1, :: -1 if columns else 1]
    return array.swapaxes(0, 1) if swap else array


def turn_back(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes `turn`."""
    return turn(array, {6: 8, 8: 6}.get(orientation, orientation))


def xmp_orientation(xmp: Any) -> int:
    """The orientation in an XMP packet (bytes), 1 if there is none. EXIF takes precedence."""
    found = _XMP_ORIENTATION.search(xmp) if isinstance(xmp, bytes) else None
    return int(found[1]) if found else 1


def sample_bits(image: Any, data: bytes) -> int:
    """Bits per sample of a file that Pillow has opened, which reduces most to 8."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))
    if image.format == "PPM":
        return pnm_maximum(image).bit_length()
    if image.format == "JPEG2000":  # SIZ, right after the start of the codestream
        start = data.index(b"\xff\x4f\xff\x51")
        (components,) = struct.unpack_from(">H", data, start + 40)
        return 1 + max(b & 0x7F for b in data[start + 42 : start + 42 + 3 * components : 3])
    if image.format == "AVIF":
        flags = data[data.index(b"av1C") + 6]
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    return 16 if image.mode.startswith("I;16") else 8


def pnm_maximum(image: Any) -> int:
    """The value of white in a PBM, PGM or PPM that Pillow has opened."""
    codec, _, _, args = image.tile[0]
    if codec == "raw":
        return 65535 if args == "I;16B" else 255
    return args[1] if isinstance(args, tuple) else 255


def without_metadata(data: bytes) -> bytes:
    """A PNG, JPEG or AVIF with only what is needed to decode it; other files unchanged."""
    if data[:8] == PNG:
        return _png_without_metadata(data)
    if data[:2] == b"\xff\xd8":
        return _jpeg_without_metadata(data)
    # AVIF's EXIF is an item of the type "Exif"; items of unknown types are ignored.
    return re.sub(rb"(infe[\x02\x03].{7,9})Exif", rb"\1skip", data, flags=re.DOTALL)


def _png_without_metadata(data: bytes) -> bytes:
    kept, position = [data[:8]], 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        checksum = zlib.crc32(data[position + 4 : end - 4])
        sound = data[end - 4 : end] == struct.pack(">I", checksum)
        if not kind[0] & 0x20 or (kind in _KEPT_CHUNKS and sound):  # lower case: ancillary
            kept.append(data[position:end])
        position = end
    return b"".join(kept)


def _jpeg_without_metadata(data: bytes) -> bytes:
    kept, position = [data[:2]], 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        marker = data[position + 1]
        end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
        metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE  # APPn, comment
        if not metadata or marker in _KEPT_SEGMENTS:
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, data[position:]])
