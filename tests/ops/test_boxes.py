"""Boxes: overlap, coding and anchors equal Detectron2's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.ops import boxes
from tests.parity import official

encode, decode, iou = (jax.jit(f) for f in (boxes.encode, boxes.decode, boxes.iou))
WEIGHTS = {"rpn_1111": (1.0, 1.0, 1.0, 1.0), "roi_10_10_5_5": (10.0, 10.0, 5.0, 5.0)}


@pytest.fixture(scope="module")
def coding():
    return official.arrays("detection/d_box_coding.npz")


@pytest.fixture(scope="module")
def anchors():
    return official.arrays("detection/c_anchors.npz")


def assert_boxes_close(ours, theirs):
    """Relative 1e-5, and 0.01 pixels for coordinates beyond 1000."""
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", WEIGHTS)
def test_coding_equals_the_reference(name, coding):
    weights = WEIGHTS[name]
    encoded = encode(coding["src"], coding["tgt"], weights)
    np.testing.assert_allclose(encoded, coding[f"{name}/encoded"], rtol=1e-5, atol=1e-5)
    assert_boxes_close(decode(encoded, coding["src"], weights), coding[f"{name}/decoded_roundtrip"])
    for scale, key in ((1, "decoded"), (5, "decoded_times5")):  # 5: beyond the limit of the sides
        decoded = decode(coding["deltas"] * scale, coding["src"], weights)
        assert_boxes_close(decoded, coding[f"{name}/{key}"])
    by_class = decode(coding["deltas_3class"].reshape(-1, 3, 4), coding["src"][:, None], weights)
    assert_boxes_close(by_class.reshape(-1, 12), coding[f"{name}/decoded_3class"])


def test_empty_boxes_have_finite_targets_of_zero(coding):
    good = coding["src"][:3]
    empty = np.array([[0, 0, 0, 0], [5, 5, 5, 9], [9, 9, 3, 3]], np.float32)
    weights = WEIGHTS["rpn_1111"]
    for sources, targets in ((good, empty), (empty, good), (empty, empty)):
        assert (np.asarray(encode(sources, targets, weights)) == 0).all()


def test_boxes_are_decoded_in_float32(coding):
    deltas = coding["deltas"].astype(jnp.bfloat16)
    weights = WEIGHTS["rpn_1111"]
    ours = decode(jnp.asarray(deltas), coding["src"] + 1000, weights)
    exact = decode(deltas.astype(np.float32), coding["src"] + 1000, weights)
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, exact)


def test_iou_of_boxes_that_touch_nest_and_are_empty():
    a = np.array([[0, 0, 4, 4], [0, 0, 0, 0], [1, 1, 1, 3]], np.float32)
    b = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [1, 1, 2, 2], [0, 0, 0, 0]], np.float32)
    expected = np.zeros((3, 5))
    expected[0] = [1, 1 / 3, 0, 1 / 16, 0]
    np.testing.assert_allclose(iou(a, b), expected, rtol=1e-6)


def test_iou_equals_the_reference():
    matching = official.arrays("detection/e_matching.npz")
    for key, others in (("rpn_iou", "anchors"), ("roi_iou", "proposals_with_gt")):
        ours = iou(matching["gt"], matching[others])
        np.testing.assert_allclose(ours, matching[key], rtol=1e-5, atol=1e-6)


def test_clip_and_nonempty():
    given = jnp.array([[-5, -5, 200, 300], [120, 10, 130, 20], [3, 4, 5, 9], [0, 0, jnp.nan, 5]])
    clipped = jax.jit(boxes.clip)(given, 90, 120)  # height, width
    expected = [[0, 0, 120, 90], [120, 10, 120, 20], [3, 4, 5, 9]]
    np.testing.assert_array_equal(clipped[:3], expected)
    np.testing.assert_array_equal(boxes.nonempty(clipped), [True, False, True, False])
    np.testing.assert_array_equal(boxes.nonempty(clipped, 2.0), [True, False, False, False])
    np.testing.assert_array_equal(boxes.area(clipped[:3]), [10800, 0, 10])


def test_anchors_of_a_small_image_equal_the_reference(anchors):
    for level, ours in enumerate(boxes.pyramid_anchors((128, 96)), 2):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, anchors[f"img128x96_p{level}"], rtol=1e-5, atol=1e-5)


def test_anchors_of_a_large_image_equal_the_reference(anchors):
    levels = boxes.pyramid_anchors((1024, 1024))
    assert [len(ours) for ours in levels] == anchors["img1024_count"].tolist()
    for level, ours in enumerate(levels, 2):
        name = f"img1024_p{level}"
        np.testing.assert_allclose(ours[:9], anchors[f"{name}_first9"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours[-9:], anchors[f"{name}_last9"], rtol=1e-5, atol=1e-5)
        sums = ours.sum(axis=0, dtype=np.float64)
        np.testing.assert_allclose(sums, anchors[f"{name}_sum"], rtol=1e-6)


def test_levels_have_the_sizes_of_the_feature_maps():
    # 7 x 5 patches of 16: pooling makes p5 3 x 2, and every second position of it is 2 x 1.
    counts = [len(ours) // 3 for ours in boxes.pyramid_anchors((112, 80))]
    assert counts == [28 * 20, 14 * 10, 7 * 5, 3 * 2, 2 * 1]
