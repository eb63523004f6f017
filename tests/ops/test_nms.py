"""Non-maximum suppression equals torchvision's and Detectron2's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.ops import boxes
from mae_jax.ops.nms import BLOCK, nms
from tests.parity import official

SIZE = 3 * BLOCK - 100  # all tests share a program of three blocks
compiled = jax.jit(nms)


@pytest.fixture(scope="module")
def fixture():
    return official.arrays("detection/f_nms.npz")


def kept(coordinates, scores, threshold, groups=None, valid=None):
    """Indices of the boxes kept, by descending score."""
    number = len(scores)
    pad = (0, SIZE - number)
    groups, valid = (
        np.pad(fill(number, dtype) if array is None else array, pad)
        for array, fill, dtype in ((groups, np.zeros, np.int32), (valid, np.ones, bool))
    )
    coordinates = np.pad(coordinates, (pad, (0, 0)), mode="wrap")  # invalid copies, if any
    scores = np.pad(scores, pad)
    keep = np.asarray(compiled(coordinates, scores, valid, threshold, groups))
    assert keep.shape == scores.shape and keep.dtype == bool and not keep[number:].any()
    return [i for i in np.argsort(-scores, kind="stable") if keep[i]]


def greedy(coordinates, scores, threshold):
    """The definition, in NumPy."""
    x0, y0, x1, y1 = coordinates.T
    areas, result = (x1 - x0) * (y1 - y0), []
    for i in np.argsort(-scores, kind="stable"):
        w = np.minimum(x1[i], x1[result]) - np.maximum(x0[i], x0[result])
        h = np.minimum(y1[i], y1[result]) - np.maximum(y0[i], y0[result])
        both = np.maximum(w, 0) * np.maximum(h, 0)
        if (both <= threshold * (areas[i] + areas[result] - both)).all():
            result.append(i)
    return result


def test_ties_keep_their_order_and_the_threshold_itself_survives(fixture):
    for threshold, key in ((0.5, "hand_keep_05"), (0.7, "hand_keep_07")):
        ours = kept(fixture["hand_boxes"], fixture["hand_scores"], threshold)
        assert ours == fixture[key].tolist()
    halves = np.array([[0, 0, 2, 1], [0, 0, 1, 1]], np.float32)  # overlap 0.5
    assert kept(halves, np.ones(2, np.float32), 0.5) == [0, 1]
    assert kept(halves, np.ones(2, np.float32), 0.49) == [0]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_random_boxes_equal_the_reference(threshold, fixture):
    coordinates, scores = fixture["rand_boxes"], fixture["rand_scores"]
    key = f"{round(10 * threshold):02d}"
    assert kept(coordinates, scores, threshold) == fixture[f"rand_keep_{key}"].tolist()
    if threshold > 0.3:
        by_class = kept(coordinates, scores, threshold, groups=fixture["rand_classes"])
        assert by_class == fixture[f"rand_batched_keep_{key}"].tolist()


def test_chains_across_blocks_equal_the_definition():
    # A box overlaps its neighbors, so that each decision depends on all earlier ones.
    number = BLOCK + 40
    x = 3 * np.arange(number, dtype=np.float32)
    chain = np.stack([x, 0 * x, x + 10, 0 * x + 10], axis=1)
    rng = np.random.default_rng(0)
    corner, side = rng.integers(0, 90, (number, 2)), rng.integers(4, 40, (number, 2))
    cloud = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
    scores = rng.integers(0, 50, number).astype(np.float32)
    for coordinates, values in ((chain, -x), (chain, scores), (cloud, scores)):
        ours = kept(coordinates, values, 0.4)
        assert ours == greedy(coordinates, values, 0.4) and 20 < len(ours) < number


def test_boxes_that_are_not_valid_suppress_nothing(fixture):
    coordinates, scores = fixture["rand_boxes"], fixture["rand_scores"]
    best, nothing = np.argmax(scores), np.zeros((1, 4), np.float32)
    # Copies of all boxes with better scores, NaN, and an empty box.
    padded = np.concatenate([coordinates, coordinates, coordinates * np.nan, nothing])
    high = np.concatenate([scores, scores + 10, scores * np.nan, scores[:1]])
    valid = np.arange(len(high)) < len(scores)
    assert kept(padded, high, 0.5, valid=valid) == fixture["rand_keep_05"].tolist()
    # Empty boxes that are valid overlap nothing: they are kept, and so are the others.
    with_empty = np.concatenate([nothing, coordinates[best : best + 1], nothing])
    assert kept(with_empty, np.array([3, 2, 1], np.float32), 0.5) == [0, 1, 2]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_refused(dtype, fixture):
    coordinates, scores = fixture["hand_boxes"], fixture["hand_scores"]
    valid = np.ones(len(scores), bool)
    with pytest.raises(TypeError, match="float32 boxes"):
        nms(coordinates.astype(dtype), scores, valid, 0.5)
    with pytest.raises(TypeError, match="float32 scores"):
        nms(coordinates, scores.astype(dtype), valid, 0.5)


def test_groups_far_from_the_origin_are_exact(fixture):
    # Groups that were told apart by shifting boxes would lose the coordinates' last digits here.
    coordinates, scores = fixture["rand_boxes"], fixture["rand_scores"]
    groups = fixture["rand_classes"] * 2**24
    ours = kept(coordinates, scores, 0.5, groups=groups)
    assert ours == fixture["rand_batched_keep_05"].tolist()


def proposals(fixture, image, per_level, min_side, number):
    """Boxes and logits of the proposals of one image, selected in NumPy but for our operators."""
    parts = []
    for level in range(3):
        logits = fixture[f"rpn_logits_l{level}"][image]
        best = np.argsort(-logits, kind="stable")[:per_level]
        logits, level_boxes = logits[best], fixture[f"rpn_boxes_l{level}"][image][best]
        finite = np.isfinite(level_boxes).all(1) & np.isfinite(logits)
        level_boxes = np.asarray(boxes.clip(level_boxes, *fixture["rpn_image_sizes"][image]))
        parts.append((level_boxes, logits, finite, np.full(len(best), level)))
    coordinates, logits, valid, levels = (np.concatenate(part) for part in zip(*parts, strict=True))
    valid &= np.asarray(boxes.nonempty(coordinates, min_side))
    best = kept(coordinates, logits, 0.7, levels, valid)[:number]
    return coordinates[best], logits[best]


@pytest.mark.parametrize(
    "prefix, per_level, min_side, number", [("rpn", 50, 0.0, 40), ("rpn2", 20, 4.0, None)]
)
def test_levels_of_proposals_equal_the_reference(prefix, per_level, min_side, number, fixture):
    for image in range(2):
        ours = proposals(fixture, image, per_level, min_side, number)
        expected = [fixture[f"{prefix}_out_{part}_img{image}"] for part in ("boxes", "logits")]
        np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(ours[1], expected[1])


def test_detections_by_class_equal_the_reference(fixture):
    scores = fixture["det_scores"][:, :-1]
    coordinates = boxes.clip(fixture["det_boxes"].reshape(60, 5, 4), *fixture["det_image_hw"])
    finite = np.isfinite(coordinates).all((1, 2)) & np.isfinite(fixture["det_scores"]).all(1)
    valid = (finite[:, None] & (scores > 0.05)).ravel()
    classes = np.tile(np.arange(5), 60)
    ours = np.array(
        kept(np.asarray(coordinates).reshape(-1, 4), scores.ravel(), 0.5, classes, valid)
    )
    row_in_reference = (np.cumsum(finite) - 1)[
        ours // 5
    ]  # which leaves out rows that are not finite
    for prefix in ("det_all", "det"):
        top = slice(len(fixture[f"{prefix}_out_row"]))
        np.testing.assert_array_equal(row_in_reference[top], fixture[f"{prefix}_out_row"])
        np.testing.assert_array_equal(classes[ours[top]], fixture[f"{prefix}_out_classes"])
        np.testing.assert_array_equal(scores.ravel()[ours[top]], fixture[f"{prefix}_out_scores"])
    assert len(ours) == len(fixture["det_all_out_row"])


def test_levels_can_be_mapped_without_groups(fixture):
    coordinates, scores = fixture["rand_boxes"], fixture["rand_scores"]
    levels = np.stack([coordinates, coordinates[::-1]]), np.stack([scores, -scores])
    valid = np.ones((2, len(scores)), bool)
    keep = np.asarray(jax.jit(jax.vmap(functools.partial(nms, threshold=0.5)))(*levels, valid))
    for level in range(2):
        ours = kept(levels[0][level], levels[1][level], 0.5)
        assert set(np.flatnonzero(keep[level])) == set(ours)
