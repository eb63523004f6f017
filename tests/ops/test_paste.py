"""Pasted masks equal Detectron2's."""

import numpy as np
import pytest

from mae_jax.ops.paste import paste, paste_one
from tests.parity import official


@pytest.fixture(scope="module")
def fixture():
    return official.arrays("detection/j_masks.npz")


def test_masks_equal_the_reference(fixture):
    height, width = fixture["image_hw"].tolist()
    ours = paste(fixture["paste_probs"], fixture["paste_boxes"], height, width)
    theirs = np.unpackbits(fixture["paste_masks_packed"], axis=-1)[..., :width].astype(bool)
    assert ours.shape == theirs.shape and ours.dtype == bool
    assert (ours != theirs).sum() <= 4  # two values are within 1e-5 of the threshold
    np.testing.assert_allclose(ours.sum(axis=(1, 2)), fixture["paste_areas"], atol=2)
    np.testing.assert_allclose(theirs.sum(axis=(1, 2)), fixture["paste_areas"])
    one = paste_one(fixture["paste_probs"][1], fixture["paste_boxes"][1], height, width)
    np.testing.assert_array_equal(one, ours[1])


def test_boxes_have_fractional_corners():
    ones = np.ones((28, 28), np.float32)
    # The centers at 2.5 to 4.5 are inside; whole-pixel corners with one added would take 2 to 6.
    mask = paste_one(ones, np.array([2.4, 2.4, 4.6, 4.6], np.float32), 8, 9)
    expected = np.zeros((8, 9), bool)
    expected[2:5, 2:5] = True
    np.testing.assert_array_equal(mask, expected)


def test_large_masks_do_not_leave_their_box():
    # A cell is 10 pixels, so that the mask fades to 0.5 within 5 pixels of each side of the box.
    mask = paste_one(np.ones((10, 10)), np.array([20, 20, 120, 120]), 140, 140)
    expected = np.zeros((140, 140), bool)
    from_side = np.minimum(np.arange(100), np.arange(100)[::-1]) + 0.5
    weight = np.minimum(0.5 + from_side / 10, 1)
    expected[20:120, 20:120] = np.outer(weight, weight) >= 0.5
    np.testing.assert_array_equal(mask, expected)


def test_boxes_without_pixels_and_without_objects():
    boxes = np.array(
        [
            [3, 3, 3, 9],
            [9, 9, 3, 3],
            [3.1, 3.1, 3.3, 3.3],
            [20, 20, 30, 30],
            [-9, -9, -1, -1],
            [np.nan] * 4,
        ]
    )
    assert not paste(np.ones((len(boxes), 28, 28)), boxes, 12, 10).any()
    assert paste(np.zeros((0, 28, 28)), np.zeros((0, 4)), 12, 10).shape == (0, 12, 10)
    covering = np.array([[-5.0, -5.0, 50.0, 60.0]])
    assert paste(np.ones((1, 28, 28)), covering, 12, 10).all()
