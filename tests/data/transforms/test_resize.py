"""Resized pixels equal Pillow's, or nearly so with a faster library."""

import numpy as np
import pytest
from PIL import Image

from mae_jax.data.transforms import resize
from tests.data.helpers import picture

SIZES = [((90, 130), (40, 56)), ((31, 20), (64, 64)), ((50, 200), (50, 64)), ((300, 400), (8, 8))]


def by_pillow(image, size):
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.fixture(
    params=[
        False,
        pytest.param(
            True, marks=pytest.mark.skipif(not resize.SIMD, reason="needs cykooz-resizer")
        ),
    ]
)
def simd(request, monkeypatch):
    monkeypatch.setattr(resize, "SIMD", request.param)
    return request.param


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_eight_bit_images_are_resized_as_pillow_does(simd, shape, size):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for image in (picture(0, *shape), noise):
        ours = resize.resize(image, size)
        difference = np.abs(ours.astype(int) - by_pillow(image, size))
        assert ours.shape == (*size, 3) and ours.dtype == np.uint8
        assert difference.mean() <= (0.2 if simd else 0) and difference.max() <= 8
    band = resize.resize(noise[..., :1], size)
    assert band.shape == (*size, 1)
    assert np.abs(band[..., 0].astype(int) - by_pillow(noise[..., 0], size)).mean() <= 0.2


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_exact_pixels_are_pillows_to_the_bit(simd, shape, size):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for image in (picture(0, *shape), noise):
        assert np.array_equal(resize.resize(image, size, exact=True), by_pillow(image, size))
    band = resize.resize(noise[..., :1], size, exact=True)
    assert np.array_equal(band[..., 0], by_pillow(noise[..., 0], size))


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_bilinear_pixels_are_pillows(simd, shape, size):
    image = picture(3, *shape)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    exact = resize.resize(image, size, exact=True, kernel="bilinear")
    np.testing.assert_array_equal(exact, expected)
    ours = resize.resize(image, size, kernel="bilinear").astype(int)
    assert np.abs(ours - expected).max() <= 1
    floats = resize.resize(image.astype(np.float32), size, kernel="bilinear")
    assert np.abs(floats - expected).max() < 1.5


def test_aliased_bilinear_pixels_are_means_of_the_nearest_four():
    image = picture(4, 9, 12)
    half = resize.resize(image, (3, 4), antialias=False, kernel="bilinear")
    np.testing.assert_array_equal(half, image[1::3, 1::3])  # the center of every 3 x 3 pixels


def test_more_bands_and_float_values_are_resized_band_by_band():
    image = np.random.default_rng(1).normal(0, 1000, (20, 30, 5)).astype(np.float32)
    ours = resize.resize(image, (12, 10))
    assert ours.dtype == np.float32
    for band in range(5):
        assert np.array_equal(ours[..., band], by_pillow(image[..., band], (12, 10)))


def test_a_view_of_a_larger_image_is_resized_like_a_copy(simd):
    view = picture(3, 80, 90)[11:70, 7:60]
    assert np.array_equal(resize.resize(view, (24, 24)), resize.resize(view.copy(), (24, 24)))


def test_mirrored_exchanges_left_and_right():
    for image in (picture(4), np.zeros((3, 4, 2), np.float32) + np.arange(4)[:, None]):
        assert np.array_equal(resize.mirrored(image), image[:, ::-1])
