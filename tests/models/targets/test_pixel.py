"""Targets and losses against plain NumPy."""

import jax.numpy as jnp
import numpy as np

from mae_jax.models.targets import pixel

PATCHES = np.random.default_rng(0).normal(2.0, 3.0, (2, 5, 12)).astype(np.float32)


def test_normalized_target_uses_the_unbiased_variance_and_eps_inside_the_root():
    flat = np.zeros((1, 1, 12), np.float32)
    flat[..., 0] = 1e-3  # so small that eps matters
    for x in (PATCHES, flat):
        wide = x.astype(np.float64)
        expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(
            wide.var(-1, ddof=1, keepdims=True) + 1e-6
        )
        out = pixel.pixel_target(jnp.asarray(x), normalize=True)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_normalizing_is_undone():
    target = pixel.pixel_target(jnp.asarray(PATCHES), normalize=True)
    np.testing.assert_allclose(
        pixel.undo_normalize(target, jnp.asarray(PATCHES)), PATCHES, atol=1e-4
    )


def test_raw_pixels_are_left_alone():
    np.testing.assert_array_equal(pixel.pixel_target(PATCHES, normalize=False), PATCHES)


def test_losses_are_means_over_each_image():
    pred = jnp.asarray(PATCHES[::-1].copy(), jnp.bfloat16)
    loss = pixel.reconstruction_loss(pred, jnp.asarray(PATCHES))
    expected = ((np.asarray(pred, np.float32) - PATCHES) ** 2).mean(axis=(1, 2))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    mean = np.broadcast_to(PATCHES.mean(-1, keepdims=True), PATCHES.shape)
    baseline = pixel.baseline_loss(jnp.asarray(PATCHES))
    np.testing.assert_allclose(baseline, ((mean - PATCHES) ** 2).mean(axis=(1, 2)), rtol=1e-5)
