"""Any image file, or array, to pixels [h, w, C], going by its content and never by its name.

Ordinary colour JPEGs (`is_plain_jpeg`) go to `simplejpeg` where it is installed; Pillow and numpy
do all the rest. Both use libjpeg-turbo and give the same pixels, Pillow in a third more time.

Files are not trusted: how large an image is its header tells, and nothing is decoded before that is
within bounds; nothing is unpickled, and no other program is started.
"""

import io
import math
import struct
from importlib.util import find_spec
from typing import Any

import numpy as np

from mae_jax.untrusted import check_npy

SIMPLEJPEG = find_spec("simplejpeg") is not None

# Of h * w * C, before anything is decoded. Pillow's own limit for RGB: 178,956,970 pixels.
MAX_VALUES = 2**29
# Long side over short side; the evaluation transform would enlarge a line of pixels without end.
MAX_ASPECT = 200
# Of Pillow's formats those that it decodes itself: for EPS, say, it would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# Compressions of multi-band TIFFs: none, LZW, deflate, PackBits. A piece that is compressed to
# 1 MiB can hold a GiB, and its header does not say so.
_TIFF_COMPRESSIONS = (1, 5, 8, 32946, 32773)
_TIFF_PIECE = 2**20

_STANDALONE = frozenset([0x01, *range(0xD0, 0xD8)])  # JPEG markers without a length
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class ImageError(ValueError):
    """One image that cannot be used; the text is the reason, and the way out where there is one."""


def is_plain_jpeg(data: bytes, *, exif_transpose: bool) -> bool:
    """Whether bytes are a complete 8-bit, 3-component JPEG of usual size that needs no turning.

    Walks the header's segments (some microseconds). Anything unusual answers False, which costs
    speed only: Pillow then decides whether the file is good.
    """
    if data[:2] != b"\xff\xd8" or data.rfind(b"\xff\xd9", -64) < 0:
        return False  # no end marker near the end: cut short, or with something appended
    position, components = 2, 0
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return False
        marker = data[position + 1]
        if marker in _STANDALONE or marker == 0xFF:
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:  # start of scan: the header ends here
            return components == 3
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = data[position + 4 : position + 2 + length]
        if marker in _START_OF_FRAME:
            if len(body) < 6 or body[0] != 8:
                return False
            height, width, components = struct.unpack_from(">HHB", body, 1)
            if height * width * components > MAX_VALUES:
                return False
        elif exif_transpose and marker == 0xE1 and _is_turned(body):
            return False
        position += 2 + length
    return False


def _is_turned(segment: bytes) -> bool:
    """Whether an APP1 segment is EXIF with another orientation than 1 (upright), or damaged."""
    if segment[:6] != b"Exif\0\0":
        return False
    tiff = segment[6:]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return True
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == 0x0112 and kind == 3:
                return struct.unpack_from(order + "H", tiff, entry + 8)[0] != 1
    except struct.error:
        return True
    return False


def to_array(
    data: bytes | np.ndarray, *, channels: int, dtype: str, exif_transpose: bool
) -> np.ndarray:
    """Pixels of one image.

    Args:
      data: the bytes of a file, or an array [h, w, C] or [h, w].
      channels: C of the result. 3 and 1 convert as Pillow's RGB and L do (alpha is dropped, grey
        repeated); any other number must be what the file has.
      dtype: 'uint8', or 'float32' in the file's own units.
      exif_transpose: apply the EXIF orientation.

    Returns:
      [h, w, C] uint8 or float32. 16-bit grey becomes 8-bit by /257 when dtype is 'uint8'.

    Raises:
      ImageError: wrong number of channels or type of values, a value that is not finite, or too
        many of them (MAX_VALUES, found before decoding; MAX_ASPECT).
      Exception: whatever Pillow or numpy raises on damaged bytes.
    """
    if isinstance(data, np.ndarray):
        return _checked(data, channels=channels, dtype=dtype)
    if not data:
        raise ImageError("the file is empty")
    if data[:6] == b"\x93NUMPY":
        return _checked(_npy(data), channels=channels, dtype=dtype)
    array = None
    if SIMPLEJPEG and channels == 3 and is_plain_jpeg(data, exif_transpose=exif_transpose):
        array = _simplejpeg(data)
    if array is None:
        array = _pillow(data, channels=channels, dtype=dtype, exif_transpose=exif_transpose)
    return _checked(array, channels=channels, dtype=dtype)


def _check_size(values: int, shape: tuple[int, ...]) -> None:
    if values > MAX_VALUES:
        raise ImageError(
            f"too large: {' x '.join(map(str, shape))}, more than {MAX_VALUES:,} values (what its "
            "header says; nothing was decoded)"
        )


def _npy(data: bytes) -> np.ndarray:
    """The array of a .npy file, if all of it is there and none of it is an object."""
    file = io.BytesIO(data)
    shape = check_npy(file, len(data))
    _check_size(math.prod(shape), shape)
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _simplejpeg(data: bytes) -> np.ndarray | None:
    """Pixels [h, w, 3] of a plain JPEG; None where there is anything to complain of."""
    import simplejpeg  # pyright: ignore[reportMissingImports]

    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None  # Pillow decides whether the file is bad, and says why


def _pillow(data: bytes, *, channels: int, dtype: str, exif_transpose: bool) -> np.ndarray:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image: Any = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header alone
    except UnidentifiedImageError:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(data)
        raise ImageError(f"not an image of a kind that is read: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {error}") from error
    bands = max(3, len(image.getbands()))  # grey may become three
    _check_size(image.height * image.width * bands, (image.height, image.width))
    if exif_transpose:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        array = np.asarray(image)
        if array.dtype == np.uint16 and dtype == "uint8":
            array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(array[..., None], 3, axis=2) if channels == 3 else array
    if channels in (1, 3):
        image = image.convert("RGB" if channels == 3 else "L")
    return np.asarray(image)


def _tiff(data: bytes) -> np.ndarray:
    """A TIFF that Pillow refuses (more than four bands, or wide values), as [h, w, C]."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        _check_size(math.prod(page.shape), page.shape)
        if page.compression not in _TIFF_COMPRESSIONS:
            raise ImageError(f"a TIFF compressed by {page.compression.name}: save it by deflate")
        if page.compression != 1 and max(page.databytecounts, default=0) > _TIFF_PIECE:
            raise ImageError("a TIFF compressed in pieces of more than 1 MiB: save it in tiles")
        array = page.asarray()
        planar = getattr(page, "planarconfig", 1) == 2 and array.ndim == 3
    return np.moveaxis(array, 0, -1) if planar else array


def _checked(array: np.ndarray, *, channels: int, dtype: str) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or 0 in array.shape:
        raise ImageError(f"an array of shape {array.shape} is not [height, width, channels]")
    if array.shape[2] != channels:
        raise ImageError(
            f"has {array.shape[2]} channels where the model takes {channels}: "
            f"set --config.model.channels={array.shape[2]}, or leave the file out"
        )
    height, width = array.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(f"{height} x {width}: one side is more than {MAX_ASPECT} times the other")
    if dtype == "uint8" and array.dtype != np.uint8:
        raise ImageError(f"holds {array.dtype} values: set --config.data.dtype=float32")
    if array.dtype.kind not in "uifb":
        raise ImageError(f"holds {array.dtype} values, which are not numbers of pixels")
    floats = array.dtype.kind == "f"
    with np.errstate(over="ignore"):  # to infinity, which is found below
        array = np.ascontiguousarray(array, dtype=dtype)
    if floats and not np.isfinite(array).all():
        count = array.size - np.count_nonzero(np.isfinite(array))
        raise ImageError(f"holds {count:,} values that are not finite (NaN or infinity)")
    return array
