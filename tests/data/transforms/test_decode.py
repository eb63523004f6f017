"""Files of every format have the same pixels as with Pillow, whatever their names."""

import io
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from mae_jax.data.transforms import decode as decoder
from mae_jax.data.transforms.decode import is_plain_jpeg, to_array
from mae_jax.data.transforms.image_headers import ORIENTATION, ImageError
from tests.data.helpers import deep_png, encode, jpeg, picture, png_chunk
from tests.helpers.faults import npy, tiff

RGB = picture(1, 30, 44)


def turned(data_format, orientation, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(Image.fromarray(RGB), data_format, exif=exif, **options)


def exif_bytes(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()[6:]


def decode(data, channels=3, dtype="uint8", exif_transpose=True):
    return to_array(data, channels=channels, dtype=dtype, exif_transpose=exif_transpose)


def by_pillow(data, mode):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    array = np.asarray(image.convert(mode))
    return array if array.ndim == 3 else array[..., None]


COLOR = Image.fromarray(RGB)
ALPHA = COLOR.copy()
ALPHA.putalpha(Image.fromarray(RGB[..., 0]))
FILES = {
    "jpeg": jpeg(RGB),
    "progressive jpeg": jpeg(RGB, progressive=True),
    "gray jpeg": encode(COLOR.convert("L"), "JPEG"),
    "cmyk jpeg": encode(COLOR.convert("CMYK"), "JPEG"),
    "turned jpeg": turned("JPEG", 6),
    "mirrored jpeg": turned("JPEG", 2),
    "png": encode(COLOR, "PNG"),
    "gray png": encode(COLOR.convert("L"), "PNG"),
    "palette png": encode(COLOR.convert("P"), "PNG"),
    "one bit png": encode(COLOR.convert("1"), "PNG"),
    "alpha png": encode(ALPHA, "PNG"),
    "gray alpha png": encode(ALPHA.convert("LA"), "PNG"),
    "webp": encode(COLOR, "WEBP"),
    "avif": encode(COLOR, "AVIF"),
    "bmp": encode(COLOR, "BMP"),
    "tiff": encode(COLOR, "TIFF"),
    "1x1": encode(COLOR.crop((0, 0, 1, 1)), "PNG"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_files_decode_as_pillow_converts_them(kind, channels, mode):
    out = decode(FILES[kind], channels)
    assert out.dtype == np.uint8
    assert np.array_equal(out, by_pillow(FILES[kind], mode))


def test_only_complete_upright_color_jpegs_take_the_fast_path():
    plain = {kind for kind in FILES if is_plain_jpeg(FILES[kind], exif_transpose=True)}
    assert plain == {"jpeg", "progressive jpeg"}
    assert is_plain_jpeg(turned("JPEG", 1), exif_transpose=True)
    assert is_plain_jpeg(turned("JPEG", 6), exif_transpose=False)
    for cut in (0, 1, 3, 10, 300, len(FILES["jpeg"]) - 2):
        assert not is_plain_jpeg(FILES["jpeg"][:cut], exif_transpose=True)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_fast_path_returns_pillows_pixels(subsampling, progressive):
    data = jpeg(picture(2, 61, 83), subsampling=subsampling, progressive=progressive)
    assert is_plain_jpeg(data, exif_transpose=True)
    assert np.array_equal(decode(data), by_pillow(data, "RGB"))


def test_a_damaged_exif_block_goes_to_pillow():
    data = (
        turned("JPEG", 1)
        .replace(b"Exif\0\0MM", b"Exif\0\0XX")
        .replace(b"Exif\0\0II", b"Exif\0\0XX")
    )
    assert b"XX" in data[:40]
    assert not is_plain_jpeg(data, exif_transpose=True)


def asymmetric(number):
    """Files of the same image with this orientation, for every decoder that rotates."""
    exif = {ORIENTATION: number}
    sixteen = RGB.astype(np.uint16) * 257
    tags = {"extratags": [(ORIENTATION, 3, 1, number, True)]}
    xmp = f'<x:xmpmeta tiff:Orientation="{number}"/>'.encode()
    text = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    return {
        "png": turned("PNG", number),
        "webp": turned("WEBP", number, lossless=True),
        "tiff": turned("TIFF", number),
        "deflated tiff": turned("TIFF", number, compression="tiff_adobe_deflate"),
        "palette tiff": encode(COLOR.convert("P"), "TIFF", tiffinfo=exif),
        "five bands": tiff(
            RGB[..., [0, 1, 2, 0, 1]], photometric="minisblack", planarconfig="contig", **tags
        ),
        "16-bit tiff": tiff(sixteen, photometric="rgb", **tags),
        "16-bit png": deep_png(sixteen, png_chunk(b"eXIf", exif_bytes(number))),
        "xmp in 16-bit png": deep_png(sixteen, text),
        "xmp in webp": encode(COLOR, "WEBP", lossless=True, xmp=xmp),
        "xmp in tiff": tiff(RGB, photometric="rgb", extratags=[(700, 1, len(xmp), xmp, True)]),
    }


@pytest.mark.parametrize("number", range(1, 9))
def test_orientation_means_the_same_for_every_decoder(number):
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(turned("PNG", number))))
    for name, data in asymmetric(number).items():
        channels = 5 if name == "five bands" else 3
        if name == "palette tiff":
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        else:
            expected = np.asarray(upright)[..., [0, 1, 2, 0, 1][:channels]]
        assert np.array_equal(decode(data, channels), expected), name
        stored = decode(data, channels, exif_transpose=False)
        assert stored.shape[:2] == RGB.shape[:2], name
        if name != "palette tiff":
            assert np.array_equal(stored, RGB[..., [0, 1, 2, 0, 1][:channels]]), name


def jpeg_with(*segments):
    """The plain JPEG with further APP1 segments."""
    parts = [b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments]
    return FILES["jpeg"][:2] + b"".join(parts) + FILES["jpeg"][2:]


XMP = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="%d"/>'


def test_orientation_of_a_jpeg_is_pillow_s(monkeypatch):
    """In any encoding, with or without simplejpeg."""
    long = exif_bytes(6).replace(b"\x01\x12\0\x03\0\0\0\x01\0\x06", b"\x01\x12\0\x04\0\0\0\x01\0\0")
    long = long[: long.index(b"\x01\x12\0\x04") + 8] + struct.pack(">I", 6) + bytes(4)
    cases = {
        "xmp": [XMP % 6],
        "upright xmp": [XMP % 1],
        "exif before xmp": [b"Exif\0\0" + exif_bytes(3), XMP % 6],
        "upright exif before xmp": [b"Exif\0\0" + exif_bytes(1), XMP % 6],
        "long": [b"Exif\0\0" + long],
    }
    for name, segments in cases.items():
        data = jpeg_with(*segments)
        expected = by_pillow(data, "RGB")
        assert (expected.shape == (30, 44, 3)) == (name not in ("xmp", "long")), name
        for fast in (decoder.SIMPLEJPEG, False):
            monkeypatch.setattr(decoder, "SIMPLEJPEG", fast)
            assert np.array_equal(decode(data), expected), name


BROKEN = b"XX\0*\0\0\0\x08"  # EXIF with a wrong header
LONG_TEXT = png_chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(2**21)))
BAD_CHECKSUM = png_chunk(b"tEXt", b"comment\0text")[:-1] + b"\0"


def png_with(*chunks, last=False):
    place = -12 if last else 33
    return FILES["png"][:place] + b"".join(chunks) + FILES["png"][place:]


def avif_with_broken_exif():
    exif = Image.Exif()
    exif[0x010E] = "text"
    data = encode(COLOR, "AVIF", exif=exif)
    return data.replace(b"Exif\0\0MM", b"Exif\0\0XX")


BROKEN_METADATA = {
    "exif of a jpeg": (jpeg_with(b"Exif\0\0" + BROKEN), "jpeg"),
    "exif of a png": (png_with(png_chunk(b"eXIf", BROKEN)), "png"),
    "exif at the end of a png": (png_with(png_chunk(b"eXIf", BROKEN), last=True), "png"),
    "exif of a webp": (encode(COLOR, "WEBP", exif=b"Exif\0\0" + BROKEN), "webp"),
    "exif of an avif": (avif_with_broken_exif(), "avif"),
    "exif of a 16-bit png": (
        deep_png(RGB.astype(np.uint16) * 257, png_chunk(b"eXIf", BROKEN)),
        "png",
    ),
    "long text": (png_with(LONG_TEXT), "png"),
    "long text at the end": (png_with(LONG_TEXT, last=True), "png"),
    "long text of a 16-bit png": (deep_png(RGB.astype(np.uint16) * 257, LONG_TEXT), "png"),
    "checksum of a text": (png_with(BAD_CHECKSUM), "png"),
    "short gamma": (png_with(png_chunk(b"gAMA", b"\0")), "png"),
}


@pytest.mark.parametrize("name", BROKEN_METADATA)
def test_broken_metadata_cost_one_warning(name, caplog, monkeypatch):
    monkeypatch.setattr(decoder, "_warned", threading.Event())
    data, kind = BROKEN_METADATA[name]
    expected = by_pillow(FILES[kind], "RGB")
    for _ in range(2):
        pixels = to_array(data, channels=3, dtype="uint8", exif_transpose=True, name="a/b.png")
        assert np.array_equal(pixels, expected)
    (line,) = (r.getMessage() for r in caplog.records)
    assert line.startswith("a/b.png: metadata that cannot be read are ignored (")


def test_a_sound_orientation_survives_other_broken_metadata():
    data = png_with(png_chunk(b"eXIf", exif_bytes(6)), LONG_TEXT)
    assert np.array_equal(decode(data), by_pillow(turned("PNG", 6), "RGB"))


def test_broken_pixels_are_not_taken_for_broken_metadata(caplog, monkeypatch):
    monkeypatch.setattr(decoder, "_warned", threading.Event())
    with pytest.raises(OSError, match="truncated"):
        decode(png_with(png_chunk(b"tEXt", b"a\0b"))[:-900])
    assert not caplog.records


def pnm(image, white=65535):
    """A binary PGM or PPM of uint16 [h, w, 1 or 3]."""
    header = f"P{5 if image.shape[2] == 1 else 6}\n# a comment\n44 30\n{white}\n"
    return header.encode() + image.astype(">u2").tobytes()


def deep(bands):
    """Random uint16 [30, 44, bands]."""
    return np.random.default_rng(bands).integers(0, 65536, (30, 44, bands)).astype(np.uint16)


def containers(image):
    """The same uint16 [h, w, 1 or 3] in every container that keeps 16 bits."""
    gray = image.shape[2] == 1
    kind = {"photometric": "minisblack" if gray else "rgb"}
    stored = image[..., 0] if gray else image
    found = {f"tiff {order}": tiff(stored, byteorder=order, **kind) for order in "<>"}
    found |= {"png": deep_png(image), "pnm": pnm(image)}
    if gray:
        found["jpeg 2000"] = encode(Image.fromarray(stored), "JPEG2000")
        found["white is zero"] = tiff(65535 - stored, photometric="miniswhite")
    else:
        planes = np.moveaxis(image, -1, 0)
        found["planar tiff"] = tiff(planes, planarconfig="separate", **kind)
        opaque = np.concatenate([image, deep(1)], axis=2)
        found["png with alpha"] = deep_png(opaque)
        found["tiff with alpha"] = tiff(opaque, extrasamples=["unassalpha"], **kind)
    return found


@pytest.mark.parametrize("bands", [1, 3])
def test_16_bits_are_the_same_in_every_container(bands):
    image = deep(bands)
    for name, data in containers(image).items():
        three = image if bands == 3 else np.repeat(image, 3, axis=2)
        assert np.array_equal(decode(data, 3, "float32"), three), name
        assert np.array_equal(decode(data, 3), np.rint(three / 257)), name
        one = image
        if bands == 3:
            one = np.floor(image @ np.array([19595, 38470, 7471]) / 2**16 + 0.5)[..., None]
        assert np.array_equal(decode(data, 1, "float32"), one), name
        assert np.array_equal(decode(data, 1), np.rint(one / 257)), name


@pytest.mark.parametrize("bands", [2, 4])
def test_16_bit_alpha_is_kept_where_that_many_channels_are_asked_for(bands):
    image = deep(bands)
    assert np.array_equal(decode(deep_png(image), bands, "float32"), image)
    assert np.array_equal(decode(deep_png(image), bands), np.rint(image / 257))


@pytest.mark.parametrize("bands", [1, 3])
def test_values_of_a_pgm_reach_up_to_its_own_white(bands):
    image = deep(bands) % 1001
    assert np.array_equal(decode(pnm(image, 1000), bands, "float32"), image)
    eight = np.floor(image.astype(float) * 255 / 1000 + 0.5)
    assert np.array_equal(decode(pnm(image, 1000), bands), eight)


def deeper(form, *changes):
    """A file written by Pillow, with another bit depth in some places of its header."""
    data = bytearray(encode(COLOR, form))
    for mark, offset, values in changes:
        place = data.index(mark) + offset
        data[place : place + len(values)] = values
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        deeper("JPEG2000", (b"\xff\x4f\xff\x51", 42, b"\x0b")),
        deeper("AVIF", (b"av1C", 6, b"\x4c"), (b"pixi", 9, b"\x0a\x0a\x0a")),
        b"P3 2 1 1000 1 2 3 4 5 1000",
    ],
)
def test_deep_colors_that_pillow_would_reduce_are_refused_in_their_own_units(data):
    with pytest.raises(ImageError, match="save it as (PNG or TIFF, or set .*uint8|binary)"):
        decode(data, 3, "float32")


def test_8_bits_are_the_same_in_their_own_units():
    for kind in ("jpeg", "png", "tiff", "palette png", "one bit png", "alpha png"):
        for channels in (1, 3):
            assert np.array_equal(
                decode(FILES[kind], channels, "float32"), decode(FILES[kind], channels)
            )


def test_arrays_of_any_number_of_channels():
    array = np.random.default_rng(0).integers(0, 256, (9, 7, 5), np.uint8)
    assert np.array_equal(decode(npy(array), 5), array)
    assert np.array_equal(decode(array, 5), array)
    assert np.array_equal(decode(npy(array[..., 0]), 1), array[..., :1])
    deep = array.astype(np.float64) * 1000 - 7
    out = decode(npy(deep), 5, "float32")
    assert out.dtype == np.float32 and np.array_equal(out, deep.astype(np.float32))


def test_four_bands_are_kept_where_four_channels_are_asked_for():
    assert np.array_equal(decode(FILES["alpha png"], 4), np.asarray(ALPHA))


@pytest.mark.parametrize(
    ("data", "channels", "message"),
    [
        (b"", 3, "empty"),
        (b"hello, not an image", 3, "not an image"),
        (npy(np.zeros((5, 5, 4), np.uint8)), 3, r"4 channels, .* --config.model.channels=4"),
        (FILES["png"], 5, r"3 channels, .* --config.model.channels=3"),
        (npy(np.zeros((5, 5, 3), np.uint16)), 3, "uint16 values: set --config.data.dtype=float32"),
        (npy(np.zeros((5, 5, 3, 1), np.uint8)), 3, r"shape \(5, 5, 3, 1\)"),
        (npy(np.zeros((0, 5, 3), np.uint8)), 3, r"shape \(0, 5, 3\)"),
    ],
)
def test_unusable_files_say_why(data, channels, message):
    with pytest.raises(ImageError, match=message):
        decode(data, channels)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_truncated_files_are_refused(kind):
    data = FILES[kind]
    with pytest.raises((OSError, SyntaxError, ValueError)):
        decode(data[: len(data) // 2])
