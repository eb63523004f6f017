"""ROIAlign, its gradients and mask targets equal Detectron2's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.ops import roi_align
from tests.parity import official

CHUNK = 5  # does not divide the number of boxes


@pytest.fixture(scope="module")
def fixture():
    return official.arrays("detection/g_roi_align.npz")


@pytest.fixture(scope="module")
def pyramid(fixture):
    """p2 to p5 of two images, channels last."""
    return [fixture[f"feat_p{level}"].transpose(0, 2, 3, 1) for level in range(2, 6)]


@pytest.fixture(scope="module")
def batch(fixture):
    """Boxes [2, 28, 4] with padding of zeros, and how to find the reference's 40 boxes in them."""
    boxes = np.zeros((2, 28, 4), np.float32)
    boxes[0], boxes[1, :12] = fixture["boxes_img0"], fixture["boxes_img1"]
    real = np.arange(28) < np.array([[28], [12]])
    return boxes, real


def pool_one(pyramid, boxes, size=7):
    return roi_align.pyramid_roi_align(pyramid, boxes, size=size, chunk=CHUNK)


def test_levels_equal_the_reference(fixture, batch):
    boxes, real = batch
    levels = jax.jit(roi_align.levels)
    ours = levels(boxes)
    assert ours.dtype == jnp.int32
    np.testing.assert_array_equal(ours[real], fixture["levels"])
    sides = np.array([0, 111.99, 112, 223.99, 224, 447.99, 448, 5000], np.float32)
    squares = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    assert levels(squares).tolist() == [2, 2, 3, 3, 4, 4, 5, 5]


def test_values_and_gradients_equal_the_reference(fixture, pyramid, batch):
    boxes, real = batch
    weight = np.zeros((2, 28, 7, 7, 6), np.float32)
    weight[real] = fixture["grad_weight"].transpose(0, 2, 3, 1)

    def weighted(pyramid, boxes):
        pooled = jax.lax.map(lambda image: pool_one(*image), (pyramid, boxes))
        return (pooled * weight).sum(), pooled

    gradients = jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))
    (of_features, of_boxes), pooled = gradients(pyramid, boxes)
    theirs = fixture["out7_sr0"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pooled[real], theirs, rtol=1e-5, atol=3e-5)
    assert not np.asarray(pooled)[~real].any()  # boxes of padding
    for level, ours in enumerate(of_features, 2):
        theirs = fixture[f"grad_p{level}"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=3e-5)
    assert not np.asarray(of_boxes).any()


def test_14_bins_of_mapped_images_equal_the_reference(fixture, pyramid, batch):
    boxes, real = batch
    bad = np.where(real[..., None], boxes, np.nan)  # instead of zeros
    bad[1, 12] = [-np.inf, 0, np.inf, 100]
    ours = jax.jit(jax.vmap(functools.partial(pool_one, size=14)))(pyramid, bad)
    theirs = fixture["out14_sr0"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours[real], theirs, rtol=1e-5, atol=3e-5)
    np.testing.assert_array_equal(ours[~real], 0)


def direct_weights(low, high, size, length):
    """The weights [P, L] of one box sample by sample, in float64."""
    width = (high - low) / size
    number = max(int(np.ceil(width)), 0)
    weights = np.zeros((size, length))
    for b in range(size):
        for i in range(number):
            y = low + b * width + (i + 0.5) * width / number
            if -1 <= y <= length:
                y = min(max(y, 0), length - 1)
                below = int(y)
                weights[b, below] += (1 - y + below) / number
                if below + 1 < length:
                    weights[b, below + 1] += (y - below) / number
    return weights


def test_weights_equal_sampling_one_by_one():
    rng = np.random.default_rng(0)
    low = np.round(rng.uniform(-30, 30, 300) * 8) / 8
    width = np.concatenate([rng.uniform(0, 3, 100), 2 ** rng.uniform(0, 6, 100), np.zeros(100)])
    # Whole bins put samples exactly on cells and on the last positions that count, -1 and 23.
    width[200:] = 4 * rng.integers(-1, 12, 100)
    low[200:] = np.floor(low[200:]) + 0.5
    low, high = low.astype(np.float32), (low + width).astype(np.float32)
    ours = jax.jit(roi_align.axis_weights, static_argnames=("size", "length"))(
        low, high, size=4, length=23
    )
    theirs = [direct_weights(*ends, 4, 23) for ends in zip(low, high, strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    on_border = (low[200:] <= -1) & (high[200:] >= -1)
    assert on_border.sum() > 5 and not np.asarray(ours)[high <= low].any()


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 3e-5), (jnp.bfloat16, 0.03)])
def test_a_single_level_in_the_dtype_of_its_features(dtype, tolerance, fixture, pyramid):
    finest = fixture["levels"][:28] == 2
    features, boxes = pyramid[0][0].astype(dtype), fixture["boxes_img0"][finest]
    compiled = jax.jit(roi_align.roi_align, static_argnames=("scale", "size"))
    ours = compiled(features, boxes, scale=0.25, size=7)
    theirs = fixture["out7_sr0"][:28][finest].transpose(0, 2, 3, 1)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.astype(np.float32), theirs, rtol=0, atol=tolerance)


def test_mask_targets_equal_the_reference():
    masks = official.arrays("detection/j_masks.npz")
    matched = masks["target_instance"].astype(np.int32)
    ours = jax.jit(roi_align.mask_targets)(masks["mask_packed"], matched, masks["target_boxes"])
    theirs = np.unpackbits(masks["target28_from_bitmasks"], axis=-1)[..., :28].astype(bool)
    assert ours.dtype == bool
    np.testing.assert_array_equal(ours, theirs)
