"""TIFF files are read as stored, compared with NumPy and tifffile."""

import io
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from mae_jax.data.transforms.decode import to_array
from mae_jax.data.transforms.image_headers import ImageError
from tests.data.helpers import encode, picture
from tests.helpers.faults import tiff

HEIGHT, WIDTH, ROWS, TILE = 37, 41, 10, (16, 32)
CODES = {"deflate": 8, "lzw": 5, "packbits": 32773, "zstd": 50000}


def decode(data, channels, dtype="float32"):
    return to_array(data, channels=channels, dtype=dtype, exif_transpose=True)


def bands(number, dtype="u1", seed=0):
    """Random samples [HEIGHT, WIDTH, number] over the whole range of a type."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1e4, (HEIGHT, WIDTH, number)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (HEIGHT, WIDTH, number), dtype, endpoint=True)


def first_page(data) -> Any:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return file.pages[0]


def patched(data, tag, value):
    """A TIFF with another value of a tag that is stored in place as SHORT or LONG."""
    entry, order = first_page(data).tags[tag], "<" if data[:2] == b"II" else ">"
    kind = "H" if entry.dtype == 3 else "I"
    data = bytearray(data)
    struct.pack_into(order + kind, data, entry.valueoffset, value)
    return bytes(data)


def packed(piece, compression):
    """Bytes of a strip or tile, compressed; for all but deflate by libtiff."""
    if compression == "deflate":
        return zlib.compress(piece)
    file = io.BytesIO()
    line = Image.fromarray(np.frombuffer(piece, np.uint8)[None])
    name = {"lzw": "tiff_lzw"}.get(compression, compression)
    line.save(file, "TIFF", compression=name)
    page = first_page(file.getvalue())
    (start,), (count,) = page.dataoffsets, page.databytecounts
    return file.getvalue()[start : start + count]


def pieces(image, tiled):
    """Strips or tiles [h, w, S] of an image, tiles at the edge padded with zeros."""
    if not tiled:
        yield from (image[top : top + ROWS] for top in range(0, HEIGHT, ROWS))
        return
    for top in range(0, HEIGHT, TILE[0]):
        for left in range(0, WIDTH, TILE[1]):
            part = image[top : top + TILE[0], left : left + TILE[1]]
            room = [(0, full - side) for full, side in zip(TILE, part.shape[:2], strict=True)]
            yield np.pad(part, [*room, (0, 0)])


def written(
    image, *, order="<", planar=False, tiled=False, compression="", predictor=False, **options
):
    """A TIFF of samples [h, w, S], written by tifffile, except for the compression."""
    number = image.shape[2]
    shape = image if number > 1 else image[..., 0]
    shape = np.moveaxis(image, -1, 0) if planar else shape
    options |= {"byteorder": order, "tile": TILE if tiled else None}
    options |= {"rowsperstrip": None if tiled else ROWS}
    if number > 1:
        options["planarconfig"] = "separate" if planar else "contig"
    if not compression:
        return tiff(shape, **options)
    encoded = []
    for plane in np.split(image, number, axis=2) if planar else [image]:
        for piece in pieces(plane, tiled):
            if predictor:
                piece = np.diff(piece, axis=1, prepend=np.zeros_like(piece[:, :1]))
            piece = piece.astype(f"{order}{piece.dtype.str[1:]}")
            encoded.append(packed(piece.tobytes(), compression))
    data = tiff(
        iter(encoded),
        **{"shape": shape.shape, "dtype": image.dtype, "compression": "zlib"},
        **{"predictor": 2 if predictor else None},
        **options,
    )
    return patched(data, 259, CODES[compression])


GRAY: dict[str, Any] = {"photometric": "minisblack"}
RGB: dict[str, Any] = {"photometric": "rgb"}
VARIANTS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "8-bit gray, LZW": (bands(1), {**GRAY, "compression": "lzw"}),
    "8-bit RGB, deflate, tiled": (bands(3), {**RGB, "compression": "deflate", "tiled": True}),
    "16-bit gray, big-endian": (bands(1, "u2"), {**GRAY, "order": ">"}),
    "16-bit RGB, PackBits": (bands(3, "u2"), {**RGB, "compression": "packbits"}),
    "16-bit RGB, planar, big-endian": (bands(3, "u2"), {**RGB, "planar": True, "order": ">"}),
    "8-bit RGB + unspecified": (bands(4), {**RGB, "extrasamples": [0]}),
    "8-bit RGB + associated alpha": (bands(4), {**RGB, "extrasamples": [1]}),
    "16-bit RGB + associated alpha": (bands(4, "u2"), {**RGB, "extrasamples": [1], "order": ">"}),
    "16-bit RGB + alpha, deflate, predictor": (
        bands(4, "u2"),
        {**RGB, "extrasamples": [2], "compression": "deflate", "predictor": True},
    ),
    "8-bit gray + alpha, zstd": (bands(2), {**GRAY, "extrasamples": [2], "compression": "zstd"}),
    "8-bit, five bands, LZW, predictor": (
        bands(5),
        {**GRAY, "compression": "lzw", "predictor": True},
    ),
    "16-bit, five bands, planar, tiled, LZW, predictor, big-endian": (
        bands(5, "u2"),
        {**GRAY, "planar": True, "tiled": True, "compression": "lzw", "predictor": True}
        | {"order": ">"},
    ),
    "float, six bands, tiled, big-endian": (bands(6, "f4"), {**GRAY, "tiled": True, "order": ">"}),
    "signed 16-bit, two bands, planar": (bands(2, "i2"), {**GRAY, "planar": True}),
    "signed 8-bit, BigTIFF": (bands(1, "i1"), {**GRAY, "bigtiff": True}),
    "white is zero, two bands": (bands(2, "u2"), {"photometric": "miniswhite"}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_samples_are_read_as_stored(name):
    image, options = VARIANTS[name]
    data, number = written(image, **options), image.shape[2]
    out = decode(data, number)
    assert out.dtype == np.float32 and np.array_equal(out, image.astype(np.float32))
    if image.dtype.kind == "u":
        eight = image if image.dtype == np.uint8 else np.rint(image / 257)
        assert np.array_equal(decode(data, number, "uint8"), eight)
    else:
        with pytest.raises(ImageError, match=f"contains {image.dtype} values: .*float32"):
            decode(data, number, "uint8")


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("bits", ["u1", "u2"])
@pytest.mark.parametrize("extra", [[], [0], [1], [2]])
def test_color_and_gray_are_taken_from_the_stored_samples(bits, extra, dtype):
    """Alpha is dropped, and nothing is multiplied or divided by it."""
    scale = 257 if bits == "u2" and dtype == "uint8" else 1
    color, gray = bands(3 + len(extra), bits), bands(1 + len(extra), bits)
    data = written(color, extrasamples=extra or None, **RGB)
    assert np.array_equal(decode(data, 3, dtype), np.rint(color[..., :3] / scale))
    luma = np.floor(color[..., :3] @ np.array([19595, 38470, 7471]) / 2**16 + 0.5)
    assert np.array_equal(decode(data, 1, dtype)[..., 0], np.rint(luma / scale))
    data = written(gray, extrasamples=extra or None, **GRAY)
    assert np.array_equal(decode(data, 1, dtype), np.rint(gray[..., :1] / scale))
    assert np.array_equal(decode(data, 3, dtype), np.rint(gray[..., [0, 0, 0]] / scale))


@pytest.mark.parametrize("compression", ["", "lzw"])
@pytest.mark.parametrize("bits", ["u1", "u2"])
def test_gray_whose_zero_is_white_is_inverted(bits, compression):
    image = bands(1, bits)
    white = np.iinfo(bits).max
    data = written(image, photometric="miniswhite", compression=compression)
    assert np.array_equal(decode(data, 1), white - image)
    assert np.array_equal(decode(data, 1, "uint8"), np.rint((white - image) / (white / 255)))


def test_bands_of_data_are_not_taken_for_colors():
    with pytest.raises(ImageError, match=r"5 channels, .* --config.model.channels=5"):
        decode(written(bands(5), **GRAY), 3)
    with pytest.raises(ImageError, match=r"2 channels, .* --config.model.channels=2"):
        decode(written(bands(2), **GRAY), 4)


@pytest.mark.parametrize("mode", ["P", "1", "CMYK"])
def test_what_has_to_be_converted_is_left_to_pillow(mode):
    image = Image.fromarray(picture(1)).convert(mode)
    data = encode(image, "TIFF")
    assert np.array_equal(decode(data, 3, "uint8"), np.asarray(image.convert("RGB")))
    assert np.array_equal(decode(data, 1, "uint8")[..., 0], np.asarray(image.convert("L")))
    if mode == "CMYK":
        assert np.array_equal(decode(data, 4, "uint8"), np.asarray(image))
    else:
        with pytest.raises(ImageError, match="save its bands with 8, 16 or 32 bits"):
            decode(data, 4, "uint8")


def twelve_bits():
    """Gray [4, 6] of 12 bits, two values in three bytes, and its TIFF."""
    values = np.random.default_rng(0).integers(0, 4096, (4, 6))
    first, second = values[:, ::2], values[:, 1::2]
    triples = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
    packed_rows = np.stack(triples, axis=2).reshape(4, 9).astype(np.uint8)
    return values, patched(patched(tiff(packed_rows, **GRAY), 256, 6), 258, 12)


def test_twelve_bits_reach_from_black_to_white():
    values, data = twelve_bits()
    assert np.array_equal(decode(data, 1)[..., 0], values)
    assert np.array_equal(decode(data, 1, "uint8")[..., 0], np.floor(values * 255 / 4095 + 0.5))


def test_deep_colors_that_only_pillow_converts_are_refused_in_their_own_units():
    data = written(bands(4, "u2"), photometric="separated")
    assert np.array_equal(decode(data, 4), bands(4, "u2"))
    assert decode(data, 3, "uint8").shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError, match="TIFF image of 16 bits, .*dtype=uint8"):
        decode(data, 3)


def limited(function):
    """Runs a function that may take half a GiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**29, hard))
    try:
        return function()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_strip_is_unpacked_only_as_far_as_the_header_says():
    image = bands(6)
    deflate = zlib.compressobj()
    begin = deflate.compress(image.tobytes()) + deflate.flush(zlib.Z_FULL_FLUSH)
    zeros = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    strip = begin + zeros * 2**11  # 2 GiB, in 2 MB
    options = {"shape": image.shape, "dtype": image.dtype, "compression": "zlib"}
    data = tiff(iter([strip]), rowsperstrip=HEIGHT, planarconfig="contig", **options, **GRAY)
    assert len(data) < 2**22
    assert np.array_equal(limited(lambda: decode(data, 6, "uint8")), image)


def test_a_tile_larger_than_any_image_is_refused():
    data = written(bands(6), tiled=True, compression="deflate", **GRAY)
    for tag in (322, 323):
        data = patched(data, tag, 2**15)
    with pytest.raises(ImageError, match="too large: 32768 x 32768"):
        limited(lambda: decode(data, 6))


@pytest.mark.parametrize("compression", CODES)
def test_strips_cut_short_are_refused(compression):
    data = written(bands(5), compression=compression, **GRAY)
    counts = first_page(data).tags[279]
    broken = bytearray(data)
    kind = "H" if counts.dtype == 3 else "I"
    struct.pack_into(f"<{kind}", broken, counts.valueoffset, counts.value[0] // 2)
    with pytest.raises((OSError, ValueError)):
        decode(bytes(broken), 5)


def test_missing_strips_are_refused():
    data = bytearray(written(bands(5), **GRAY))
    entries = [first_page(bytes(data)).tags[tag] for tag in (273, 279)]
    for entry in entries:
        struct.pack_into("<I", data, entry.offset + 4, entry.count - 1)
    with pytest.raises(ImageError, match="3 of 4 strips"):
        decode(bytes(data), 5)


def test_other_compressions_of_bands_are_refused_with_the_remedy():
    data = patched(written(bands(5), compression="deflate", **GRAY), 259, 7)
    with pytest.raises(ImageError, match="compression JPEG: save .* uncompressed or with deflate"):
        decode(data, 5)
