"""Decodes image files and arrays to pixels [h, w, C], by their content and never by their name.

Decoders:

    ordinary color JPEGs (`is_plain_jpeg`)    simplejpeg, if installed: the same pixels as Pillow
    TIFFs of gray, RGB or any other bands     tifffile (`tiff`)
    PNGs of 16-bit color                      TensorFlow
    binary PGM and PPM of more than 8 bits    NumPy
    everything else                           Pillow

Pillow alone would reduce 16-bit color to 8 bits, and treats further bands in its own way.

Files are not trusted: nothing is decoded before the size in the header has been checked, nothing is
unpickled, and no other program is started.
"""

import io
import logging
import math
import struct
import threading
from importlib.util import find_spec
from typing import Any

import numpy as np

from mae_jax.data.options import DataOptions
from mae_jax.data.transforms import decode, image_headers
from mae_jax.data.transforms.image_headers import ImageError, Stored, check_size
from mae_jax.data.transforms.tiff import is_tiff, read_tiff
from mae_jax.runtime.safe_load import check_npy

log = logging.getLogger(__name__)
_warned = threading.Event()  # set once the metadata of an image were ignored
SIMPLEJPEG = find_spec("simplejpeg") is not None
# Long side over short side: the evaluation view would enlarge a line of pixels to a huge image.
MAX_ASPECT = 200
# The formats that Pillow decodes itself; for EPS, for example, it would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# Weights of red, green and blue in gray, times 2**16, as in Pillow's "L".
_LUMA = np.array([19595, 38470, 7471], np.float64)
_STANDALONE = frozenset([0x01, *range(0xD0, 0xD8)])  # JPEG markers without a length
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def is_plain_jpeg(data: bytes, *, exif_transpose: bool) -> bool:
    """Whether bytes are a complete, upright 8-bit JPEG with 3 components of normal size.

    Walks the segments of the header (a few microseconds). Returns False for anything unusual, which
    only costs speed: Pillow then decides whether the file is valid.
    """
    if data[:2] != b"\xff\xd8" or data.rfind(b"\xff\xd9", -64) < 0:
        return False  # no end marker near the end: truncated, or with something appended
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
            if height * width * components > image_headers.MAX_VALUES:
                return False
        elif exif_transpose and marker == 0xE1 and _is_rotated(body):
            return False
        position += 2 + length
    return False


def _is_rotated(segment: bytes) -> bool:
    """Whether an APP1 segment may specify a rotation, or is damaged."""
    if segment.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
        return image_headers.xmp_orientation(segment) != 1
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
            if tag == image_headers.ORIENTATION:
                return (kind, *struct.unpack_from(order + "H", tiff, entry + 8)) != (3, 1)
    except struct.error:
        return True
    return False


def to_array(
    data: bytes | np.ndarray,
    *,
    channels: int,
    dtype: str,
    exif_transpose: bool,
    name: str = "an image",
) -> np.ndarray:
    """Pixels of one image.

    Args:
      data: the bytes of a file, or an array [h, w, C] or [h, w].
      channels: C of the result. 3 and 1 convert as Pillow's RGB and L do (alpha is dropped, gray
        repeated); any other number must match the file, and samples are returned as stored.
      dtype: 'uint8', or 'float32' in the file's own units (fewer than 8 bits become 8).
      exif_transpose: apply the orientation of EXIF or, if there is none, of XMP.
      name: of the image, for warnings.

    Returns:
      [h, w, C] uint8 or float32. With 'uint8', unsigned 16-bit values are scaled to 8 bits.

    Raises:
      ImageError: wrong number of channels or type of values, values that cannot be kept as they are
        in the file, values that are not finite, or too large (MAX_VALUES, checked before decoding;
        MAX_ASPECT).
      Exception: whatever Pillow, tifffile, TensorFlow or NumPy raise on damaged bytes.
    """
    if isinstance(data, np.ndarray):
        return _checked(data, channels=channels, dtype=dtype)
    if not data:
        raise ImageError("the file is empty")
    if data[:6] == b"\x93NUMPY":
        return _checked(_npy(data), channels=channels, dtype=dtype)
    if SIMPLEJPEG and channels == 3 and is_plain_jpeg(data, exif_transpose=exif_transpose):
        array = _simplejpeg(data)
        if array is not None:
            return _checked(array, channels=channels, dtype=dtype)
    image = _read(data, channels=channels, dtype=dtype, name=name)
    array = _to_channels(image, channels)
    if array.dtype.str[1:] == "u2" and dtype == "uint8":  # in either byte order
        array = _to_8_bits(array, image.white)
    if exif_transpose:
        array = image_headers.turn(array, image.orientation)
    return _checked(array, channels=channels, dtype=dtype)


def _npy(data: bytes) -> np.ndarray:
    """The array of a .npy file, if it is complete and contains no objects."""
    file = io.BytesIO(data)
    check_size(*check_npy(file, len(data)))
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _simplejpeg(data: bytes) -> np.ndarray | None:
    """Pixels [h, w, 3] of a plain JPEG; None if there is any error or warning."""
    import simplejpeg  # pyright: ignore[reportMissingImports]

    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None  # Pillow decides whether the file is bad, and why


def _read(data: bytes, *, channels: int, dtype: str, name: str) -> Stored:
    """An image file that is not a plain JPEG."""
    if is_tiff(data):
        image = read_tiff(data, as_stored=channels not in (1, 3))
        if image is not None:
            return image
    try:
        return _pillow(data, channels=channels, dtype=dtype, name=name)
    except Exception as error:  # Pillow raises nearly any type, for metadata as for pixels
        pixels = image_headers.without_metadata(data)
        if pixels == data:
            raise
        try:
            image = _pillow(pixels, channels=channels, dtype=dtype, name=name)
        except Exception:
            raise error from None
        _warn(name, error)
        return image


def _pillow(data: bytes, *, channels: int, dtype: str, name: str) -> Stored:
    """An image file whose header is read by Pillow, and usually its pixels, too."""
    image = _open(data)
    deep = _deep_samples(image, data)
    if deep is not None:
        return deep._replace(orientation=_orientation(image, name))
    if dtype == "float32":
        _check_units(image, data)
    white = 2 ** image_headers.sample_bits(image, data) - 1 if image.format == "TIFF" else 65535
    rotated = image.format == "TIFF"  # by Pillow, on loading
    if not rotated:
        image.load()
    orientation = _orientation(image, name)
    wide = _is_wide(image)
    if channels in (1, 3) and not wide:
        image = image.convert("RGB" if channels == 3 else "L")
    samples = np.atleast_3d(np.asarray(image))
    if rotated:
        samples = image_headers.turn_back(samples, orientation)
    return Stored(samples, 1 if wide else samples.shape[2], orientation, white)


def _open(data: bytes) -> Any:
    """Pillow's image of a file; only the header has been read."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(f"not an image in a supported format: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {error}") from error
    check_size(image.height, image.width, max(3, len(image.getbands())))  # gray may become three
    return image


def _is_wide(image: Any) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _orientation(image: Any, name: str) -> int:
    try:
        exif = image.getexif()
        if not exif and image.info.get("exif"):  # for JPEGs, Pillow has tried it before
            raise ValueError("no EXIF tag can be read")
        return exif.get(image_headers.ORIENTATION, 1)
    except Exception as error:  # nearly any type, as EXIF is a separate format
        _warn(name, error)
        return 1


def _deep_samples(image: Any, data: bytes) -> Stored | None:
    """Samples of more than 8 bits if Pillow would reduce them; otherwise None."""
    if image.format == "PNG" and data[24] == 16 and data[25] != 0:  # in IHDR: bits, color type
        from mae_jax.runtime.tensorflow_cpu import tf

        samples = tf.io.decode_png(data, dtype=tf.uint16).numpy()
        return Stored(samples, 3 if samples.shape[2] >= 3 else 1)
    if image.format == "PPM" and (white := image_headers.pnm_maximum(image)) > 255:
        codec, _, start, _ = image.tile[0]
        if codec == "ppm_plain":
            raise ImageError("a PGM or PPM of text with more than 8 bits: save it as binary")
        shape = image.height, image.width, len(image.getbands())
        samples = np.frombuffer(data, ">u2", math.prod(shape), start).reshape(shape)
        return Stored(samples, shape[2], white=white)
    return None


def _check_units(image: Any, data: bytes) -> None:
    """Raises ImageError if Pillow would change the values of a file."""
    bits = image_headers.sample_bits(image, data)
    if bits <= 8 or (_is_wide(image) and (bits >= 16 or image.format == "TIFF")):
        return
    raise ImageError(
        f"a {image.format} image of {bits} bits, whose values cannot be read as they are: save it "
        "as PNG or TIFF, or set --config.data.dtype=uint8"
    )


def _to_channels(image: Stored, channels: int) -> np.ndarray:
    """Without alpha, and gray as RGB or RGB as gray, if the model takes 3 channels or 1."""
    samples = image.samples
    if channels not in (1, 3) or channels == samples.shape[2]:
        return samples
    samples = samples[..., : image.color]
    if image.color == 1 and channels == 3:
        return np.repeat(samples, 3, axis=2)
    if image.color == 3 and channels == 1:
        return _gray(samples)
    return samples


def _gray(samples: np.ndarray) -> np.ndarray:
    """[h, w, 1] of the same type, as in Pillow's "L"."""
    total = samples.astype(np.float64) @ _LUMA[:, None]
    if samples.dtype.kind in "ui":
        total = np.floor(total + 2**15)
        return np.floor(total / 2**16).astype(samples.dtype)
    return (total / 2**16).astype(samples.dtype)


def _to_8_bits(array: np.ndarray, white: int) -> np.ndarray:
    """Values 0 to `white` as 0 to 255, rounded half up."""
    array = np.minimum(array, white).astype(np.uint32)
    return ((array * 510 + white) // (2 * white)).astype(np.uint8)


def _warn(name: str, error: Exception) -> None:
    """Logs that metadata were ignored, for the first image in the process."""
    if not _warned.is_set():
        _warned.set()
        log.warning(
            "%s: metadata that cannot be read are ignored (%s: %s); further such images are not "
            "reported",
            *(name, type(error).__name__, error),
        )


def _checked(array: np.ndarray, *, channels: int, dtype: str) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or 0 in array.shape:
        raise ImageError(f"an array of shape {array.shape} is not [height, width, channels]")
    if array.shape[2] != channels:
        raise ImageError(
            f"has {array.shape[2]} channels, but the model takes {channels}: "
            f"set --config.model.channels={array.shape[2]}, or leave the file out"
        )
    height, width = array.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(f"{height} x {width}: one side is more than {MAX_ASPECT} times the other")
    if dtype == "uint8" and array.dtype != np.uint8:
        raise ImageError(f"contains {array.dtype} values: set --config.data.dtype=float32")
    if array.dtype.kind not in "uifb":
        raise ImageError(f"contains {array.dtype} values, which cannot be pixels")
    floats = array.dtype.kind == "f"
    with np.errstate(over="ignore"):  # to infinity, which is found below
        array = np.ascontiguousarray(array, dtype=dtype)
    if floats and not np.isfinite(array).all():
        count = array.size - np.count_nonzero(np.isfinite(array))
        raise ImageError(f"contains {count:,} values that are not finite (NaN or infinity)")
    return array


def pixels(
    data: bytes | np.ndarray, options: DataOptions, *, channels: int, name: str = "an image"
) -> np.ndarray:
    """`to_array` with the options of `config.data`."""
    return decode.to_array(
        data,
        channels=channels,
        dtype=options.dtype,
        exif_transpose=options.exif_transpose,
        name=name,
    )
