"""Patch order, and conversion of pixels in both directions."""

import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.ops import patches


def test_order_is_row_column_channel_and_row_by_row():
    image = np.arange(4 * 6 * 2).reshape(1, 4, 6, 2)
    out = np.asarray(patches.patchify(jnp.asarray(image), (2, 3)))
    assert out.shape == (1, 4, 12)
    for row in range(2):
        for column in range(2):
            patch = image[0, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            np.testing.assert_array_equal(out[0, 2 * row + column], patch.reshape(-1))


def test_unpatchify_undoes_patchify():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 12, 3)))
    out = patches.patchify(image, (4, 2))
    np.testing.assert_array_equal(patches.unpatchify(out, (4, 2), (2, 6)), image)


def test_means_of_a_map_over_each_patch():
    pixels = np.random.default_rng(0).integers(0, 255, (2, 4, 6), dtype=np.uint8)
    found = np.asarray(patches.patch_means(jnp.asarray(pixels), (2, 3)))
    assert found.shape == (2, 4) and found.dtype == np.float32
    for image in range(2):
        for row in range(2):
            for column in range(2):
                patch = pixels[image, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
                value = found[image, 2 * row + column]
                np.testing.assert_allclose(value, patch.astype(float).mean(), rtol=1e-6)


def test_gather_picks_per_example():
    x = jnp.arange(2 * 3 * 2).reshape(2, 3, 2)
    out = patches.gather(x, jnp.array([[2, 0], [1, 1]]))
    np.testing.assert_array_equal(out, [[[4, 5], [0, 1]], [[8, 9], [8, 9]]])


def test_size_that_does_not_divide_names_the_nearest():
    with pytest.raises(ValueError, match="width 250 .* patch size 16; nearest: 240 or 256"):
        patches.grid_size((224, 250), (16, 16))


@pytest.mark.parametrize("dtype, unit", [(np.uint8, 255.0), (np.float32, 1.0)])
def test_float_pixels_follow_torchvision_and_come_back(dtype, unit):
    mean, std = (0.4, 0.5), (0.2, 0.25)
    x = np.random.default_rng(0).integers(0, 255, (3, 5, 8)).astype(dtype)
    out = np.asarray(patches.to_float(jnp.asarray(x), mean, std))
    expected = (x.reshape(3, 5, 4, 2) / unit - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(out, expected.reshape(3, 5, 8), rtol=2e-6, atol=1e-6)
    back = patches.from_float(jnp.asarray(out), mean, std)
    np.testing.assert_allclose(back, x / unit, rtol=1e-5, atol=1e-6)
