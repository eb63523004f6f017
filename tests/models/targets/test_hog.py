"""HOG targets against a plain NumPy version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models.targets import PatchSpec, hog, restore
from mae_jax.ops.patches import unpatchify
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.pretrain import Pretrain
from tests.helpers import tiny_configs

SPEC = PatchSpec((16, 24), (8, 8), 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)


def plain_hog(image, cell, bins):
    """HOG features [rows, columns, C, bins], pixel by pixel."""
    height, width, channels = image.shape
    out = np.zeros((height // cell[0], width // cell[1], channels, bins))
    value = image.astype(np.float64)
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                dy = value[min(y + 1, height - 1), x, c] - value[max(y - 1, 0), x, c]
                dx = value[y, min(x + 1, width - 1), c] - value[y, max(x - 1, 0), c]
                degrees = np.degrees(np.arctan2(dy, dx)) % 180
                index = min(int(degrees * bins / 180), bins - 1)
                out[y // cell[0], x // cell[1], c, index] += np.hypot(dy, dx)
    return out / np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-6)


def test_equals_a_plain_version():
    found = hog.hog(jnp.asarray(IMAGES), (4, 4))
    # Gradients of integers can lie exactly between two bins, where rounding decides.
    close = np.isclose(found, [plain_hog(x, (4, 4), hog.BINS) for x in IMAGES], atol=1e-5)
    assert close.all(axis=-1).mean() > 0.99


def test_targets_are_those_of_the_patches_asked_for():
    target = hog.HogTarget(SPEC)
    ids = jnp.asarray([[4, 1], [0, 5]])
    found = target.targets({}, jnp.asarray(IMAGES), ids)
    assert found.shape == (2, 2, target.width) and target.width == 4 * 9 * 3
    cells = np.asarray(hog.hog(jnp.asarray(IMAGES), (4, 4)))
    np.testing.assert_array_equal(found[0, 0], cells[0, 2:4, 2:4].reshape(-1))  # row 1, column 1
    np.testing.assert_array_equal(found[1, 1], cells[1, 2:4, 4:6].reshape(-1))


def test_neither_brightness_nor_contrast_matters():
    images = IMAGES.astype(np.float32)
    some = hog.hog(jnp.asarray(images), (4, 4))
    np.testing.assert_allclose(hog.hog(jnp.asarray(3 * images - 40), (4, 4)), some, atol=1e-4)
    assert not hog.hog(jnp.full((1, 8, 8, 3), 7, jnp.uint8), (4, 4)).any()


def test_losses_of_true_and_of_mean_histograms():
    target = hog.HogTarget(SPEC)
    ids = jnp.tile(jnp.arange(6), (2, 1))
    true = target.targets({}, jnp.asarray(IMAGES), ids)
    assert not target.loss(true, true).any()
    mean = jnp.broadcast_to(true.mean(axis=1, keepdims=True), true.shape)
    bar = target.baseline_loss(true, jnp.ones(2))
    np.testing.assert_allclose(target.loss(mean, true), bar, rtol=1e-5)


def test_a_vertical_edge_is_drawn_as_a_vertical_line():
    target = hog.HogTarget(SPEC)
    image = np.zeros((1, 16, 24, 3), np.uint8)
    image[:, :, 10:] = 200  # inside the cells of columns 8 to 11
    ids = jnp.arange(6)[None]
    drawn = target.to_pixels({}, target.targets({}, jnp.asarray(image), ids), image)
    assert drawn.shape == (1, 6, 8 * 8 * 3)
    pixels = np.asarray(unpatchify(drawn, (8, 8), (2, 3)))[0, :, :, 0] * 0.25 + 0.5
    assert pixels[:, 9:11].mean() > 5 * pixels[:, [8, 11]].mean() and pixels[:, :8].max() < 1e-6


def test_a_run_learns_and_its_checkpoint_knows_its_target():
    config = tiny_configs.config(target__kind="hog", target__normalize=False)
    task = Pretrain(config, "")
    metadata = task.metadata(0)["target"]
    assert metadata == {"kind": "hog"} and task.model.pred_dim == task.target.width
    assert isinstance(restore(metadata, task.target.spec, {}), hog.HogTarget)
    batch = next(task.train_batches(0))
    batch = {"image": jnp.asarray(batch["image"]), "label": jnp.asarray(batch["label"])}
    params, state = task.init_variables()
    prepared = task.prepare(batch, jax.random.key(0), jnp.int32(0))
    loss, (metrics, _) = task.loss(params, state, prepared)
    assert 0 < float(metrics["baseline_loss"]) < 1 and np.isfinite(loss)


def test_odd_patches_are_refused():
    with pytest.raises(UsageError, match=r"patch_size=\(7, 8\) must be even"):
        hog.HogTarget(SPEC._replace(patch_size=(7, 8)))
