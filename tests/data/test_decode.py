"""Every kind of file gives the pixels that Pillow gives, whatever its name says."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from mae_jax.data.decode import ImageError, is_plain_jpeg, to_array
from tests.data.helpers import encode, jpeg, picture

RGB = picture(1, 30, 44)
DEEP = (np.arange(30 * 44, dtype=np.uint16).reshape(30, 44) * 49).astype(np.uint16)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def turned(data_format, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.fromarray(RGB), data_format, exif=exif, **options)


def decode(data, channels=3, dtype="uint8", exif_transpose=True):
    return to_array(data, channels=channels, dtype=dtype, exif_transpose=exif_transpose)


def by_pillow(data, mode):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    array = np.asarray(image.convert(mode))
    return array if array.ndim == 3 else array[..., None]


COLOUR = Image.fromarray(RGB)
ALPHA = COLOUR.copy()
ALPHA.putalpha(Image.fromarray(RGB[..., 0]))
FILES = {
    "jpeg": jpeg(RGB),
    "progressive jpeg": jpeg(RGB, progressive=True),
    "grey jpeg": encode(COLOUR.convert("L"), "JPEG"),
    "cmyk jpeg": encode(COLOUR.convert("CMYK"), "JPEG"),
    "turned jpeg": turned("JPEG", 6),
    "mirrored jpeg": turned("JPEG", 2),
    "png": encode(COLOUR, "PNG"),
    "grey png": encode(COLOUR.convert("L"), "PNG"),
    "palette png": encode(COLOUR.convert("P"), "PNG"),
    "one bit png": encode(COLOUR.convert("1"), "PNG"),
    "alpha png": encode(ALPHA, "PNG"),
    "grey alpha png": encode(ALPHA.convert("LA"), "PNG"),
    "webp": encode(COLOUR, "WEBP"),
    "bmp": encode(COLOUR, "BMP"),
    "tiff": encode(COLOUR, "TIFF"),
    "1x1": encode(COLOUR.crop((0, 0, 1, 1)), "PNG"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_files_decode_as_pillow_converts_them(kind, channels, mode):
    out = decode(FILES[kind], channels)
    assert out.dtype == np.uint8
    assert np.array_equal(out, by_pillow(FILES[kind], mode))


def test_only_complete_upright_colour_jpegs_take_the_short_way():
    plain = {kind for kind in FILES if is_plain_jpeg(FILES[kind], exif_transpose=True)}
    assert plain == {"jpeg", "progressive jpeg"}
    assert is_plain_jpeg(turned("JPEG", 1), exif_transpose=True)
    assert is_plain_jpeg(turned("JPEG", 6), exif_transpose=False)
    for cut in (0, 1, 3, 10, 300, len(FILES["jpeg"]) - 2):
        assert not is_plain_jpeg(FILES["jpeg"][:cut], exif_transpose=True)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_short_way_gives_pillows_pixels(subsampling, progressive):
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


def test_orientation_can_be_left_alone():
    assert decode(FILES["turned jpeg"]).shape == (44, 30, 3)
    assert decode(FILES["turned jpeg"], exif_transpose=False).shape == (30, 44, 3)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_or_kept(form):
    data = encode(Image.fromarray(DEEP), form)
    eight = np.round(DEEP / 257).astype(np.uint8)
    assert np.array_equal(decode(data, 1)[..., 0], eight)
    assert np.array_equal(decode(data, 3), np.repeat(eight[..., None], 3, axis=2))
    assert np.array_equal(decode(data, 1, "float32")[..., 0], DEEP.astype(np.float32))


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


def test_tiffs_beyond_pillow_are_read_by_tifffile(tmp_path):
    import tifffile

    bands = np.random.default_rng(0).integers(0, 60000, (9, 7, 6)).astype(np.uint16)
    for planar in ("contig", "separate"):
        stored = bands if planar == "contig" else np.moveaxis(bands, -1, 0)
        path = tmp_path / f"{planar}.tif"
        tifffile.imwrite(path, stored, planarconfig=planar, photometric="minisblack")
        assert np.array_equal(decode(path.read_bytes(), 6, "float32"), bands.astype(np.float32))


@pytest.mark.parametrize(
    ("data", "channels", "message"),
    [
        (b"", 3, "empty"),
        (b"hello, not an image", 3, "not an image"),
        (npy(np.zeros((5, 5, 4), np.uint8)), 3, r"4 channels .* --config.model.channels=4"),
        (FILES["png"], 5, r"3 channels .* --config.model.channels=3"),
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
