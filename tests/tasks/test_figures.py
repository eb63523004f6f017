"""Reconstructions and figures of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mae_jax.models.reconstruct import reconstruct
from mae_jax.models.targets import PatchSpec
from mae_jax.models.targets.pixel import PixelTarget, pixel_target
from mae_jax.ops import masking
from mae_jax.ops.patches import patchify
from mae_jax.tasks import figures
from tests.parity import official

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = PatchSpec((32, 32), (4, 4), 3, MEAN, STD)


class Oracle:
    """Predicts the target perfectly, so that what is shown must be the original."""

    patch_size, grid = (4, 4), (8, 8)
    predict = None

    def __init__(self, target):
        self.target = target

    def apply(self, variables, visible, masking, method):
        return self.target


@pytest.mark.parametrize("normalize", [False, True])
def test_a_perfect_prediction_shows_the_original(normalize):
    images = official.arrays("mae_tiny_r75_npl0.npz")["imgs_u8"].copy()
    images[:, 0, 0], images[:, 0, 1] = 0, 255
    pixels = (images / 255 - np.array(MEAN)) / np.array(STD)
    oracle = pixel_target(patchify(jnp.asarray(pixels, jnp.float32), (4, 4)), normalize=normalize)
    masked = masking.from_noise(jax.random.uniform(jax.random.key(0), (4, 64)), 0.75)
    target = PixelTarget(SPEC, normalize=normalize)
    out = reconstruct(Oracle(oracle), {}, jnp.asarray(images), masked, target, {})
    for view in (out.original, out.predicted, out.pasted):
        np.testing.assert_allclose(view, images / 255, atol=1e-4)
    assert images.min() == 0 and images.max() == 255  # where rounding could leave [0, 1]
    original = np.asarray(out.original)
    np.testing.assert_array_equal(figures.to_display(original, original), images)
    gray = (np.abs(np.asarray(out.masked) - 0.5) < 1e-6).all(axis=-1).mean()
    assert gray == pytest.approx(0.75, abs=0.01)


def test_pasted_image_takes_each_patch_from_where_it_should():
    model, params = official.tiny_model(), official.tiny_params()
    images = jnp.asarray(official.arrays("mae_tiny_r75_npl0.npz")["imgs_u8"])
    masked = masking.from_noise(jax.random.uniform(jax.random.key(1), (4, 64)), 0.75)
    out = reconstruct(model, params, images, masked, PixelTarget(SPEC, normalize=False), {})
    hidden = np.repeat(np.repeat(np.asarray(masked.mask).reshape(4, 8, 8), 4, 1), 4, 2)[..., None]
    expected = np.where(hidden == 1, out.predicted, out.original)
    np.testing.assert_allclose(out.pasted, expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_channels_and_units_can_be_shown(channels):
    images = np.random.default_rng(0).normal(500, 200, (2, 8, 8, channels))
    out = figures.to_display(images, images)
    assert out.shape == (2, 8, 8, 3) and out.dtype == np.uint8
    assert out.min() == 0 and out.max() == 255


def test_grid_contains_the_images_and_is_written(tmp_path):
    red = np.zeros((2, 50, 40, 3), np.uint8)
    red[..., 0] = 200
    image = figures.image_grid([("one", red), ("two", red[:, :, :, ::-1])], "caption")
    zoom = 3  # 40 pixels enlarged to at least 96
    assert (image == (200, 0, 0)).all(axis=-1).sum() == 2 * 50 * 40 * zoom**2
    assert (image == (0, 0, 200)).all(axis=-1).sum() == 2 * 50 * 40 * zoom**2
    path = tmp_path / "new" / "figure.png"
    figures.save_png(str(path), image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
