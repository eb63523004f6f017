"""Broken and unusual image files for the tests of the input pipeline."""

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image

from tests.data.helpers import encode, jpeg, picture, png_chunk

PIXELS = picture(50)
COLOR = Image.fromarray(PIXELS)
JPEG = jpeg(PIXELS)
FRAMES = [Image.fromarray(picture(i)) for i in (50, 51, 52)]
MANY = {"save_all": True, "append_images": FRAMES[1:]}


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def claimed_npy(shape, body=b""):
    """A .npy file of bytes whose header claims `shape`."""
    header = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def claimed_png(width, height):
    """A PNG of a few hundred bytes that claims this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", data)
        + png_chunk(b"IEND", b"")
    )


def claimed_jpeg(width, height):
    """A JPEG of a kilobyte that claims this size."""
    data = bytearray(JPEG)
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def claimed_tiff(side):
    """A TIFF that claims this size; its six bands need tifffile, as Pillow cannot read them."""
    data = bytearray(tiff(np.zeros((9, 9, 6), np.uint16), photometric="minisblack"))
    for tag in (256, 257):  # width, height: SHORT or LONG, one value in place
        place = data.index(struct.pack("<H", tag), 8)
        data[place + 2 : place + 12] = struct.pack("<HII", 4, 1, side)
    return bytes(data)


def broken_table():
    """A JPEG with valid markers and an invalid Huffman table, which only the decoder detects."""
    data = bytearray(JPEG)
    start = data.index(b"\xff\xc4")
    data[start + 5 : start + 21] = bytes([255] * 16)
    return bytes(data)


def not_finite(value):
    array = np.ones((9, 9, 3), np.float32)
    array[1, 2, 0] = value
    return npy(array)


DEEP = np.arange(1200, dtype=np.uint16).reshape(30, 40)
# Content -> size of the decoded image.
ODD = {
    "png named jpeg": (encode(COLOR, "PNG"), (40, 50)),
    "cmyk jpeg": (encode(COLOR.convert("CMYK"), "JPEG"), (40, 50)),
    "16-bit gray png": (encode(Image.fromarray(DEEP), "PNG"), (30, 40)),
    "16-bit color tiff": (tiff(np.zeros((9, 8, 3), np.uint16), photometric="rgb"), (9, 8)),
    "palette": (encode(COLOR.convert("P"), "PNG"), (40, 50)),
    "animated gif": (encode(FRAMES[0], "GIF", **MANY), (40, 50)),
    "animated webp": (encode(FRAMES[0], "WEBP", **MANY), (40, 50)),
    "animated png": (encode(FRAMES[0], "PNG", **MANY), (40, 50)),
    "pages of a tiff": (encode(FRAMES[0], "TIFF", **MANY), (40, 50)),
    "1 x 1": (encode(COLOR.crop((0, 0, 1, 1)), "PNG"), (1, 1)),
}
# Content -> reason in the log message.
BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"404 Not Found", "not an image in a supported format"),
    "truncated jpeg": (JPEG[:-200], "truncated"),
    "jpeg without its end": (JPEG[:-2], "truncated"),
    "jpeg with a broken table": (broken_table(), "broken data stream"),
    "truncated png": (encode(COLOR, "PNG")[:-900], "truncated"),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "not an image in a supported format",
    ),
    "a line": (encode(COLOR.resize((8040, 40)), "PNG"), "one side is more than 200 times"),
    "png bomb": (claimed_png(30_000, 30_000), "too large"),
    "jpeg bomb": (claimed_jpeg(65_500, 65_500), "too large"),
    "tiff bomb": (claimed_tiff(2**20), "too large"),
    "npy bomb": (claimed_npy((2**20, 2**20, 3)), "too large|cut short"),
    "short npy": (claimed_npy((999, 999, 3), b"few"), "cut short"),
    "objects": (npy(np.array([{}], object), allow_pickle=True), "Python objects"),
    "program in a header": (claimed_npy("__import__('os').abort()"), "shape is not valid"),
    "six bands": (npy(np.zeros((9, 9, 6), np.uint8)), "--config.model.channels=6"),
    "16-bit array": (npy(np.zeros((9, 9, 3), np.uint16)), "--config.data.dtype=float32"),
}
# The same, for --config.data.dtype=float32.
BAD_FLOATS = {
    "nan": (not_finite(np.nan), "1 values that are not finite"),
    "infinity": (not_finite(-np.inf), "1 values that are not finite"),
    "larger than float32": (npy(np.full((9, 9, 3), 1e300)), "243 values that are not finite"),
    "complex": (npy(np.zeros((9, 9, 3), complex)), "which cannot be pixels"),
}
BOMBS = [name for name in BAD if "bomb" in name]
