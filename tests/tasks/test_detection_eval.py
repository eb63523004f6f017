"""Detections in the pixels of the original images, gathered from all processes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.data import segments
from mae_jax.distributed import collectives
from mae_jax.models.mask_rcnn import Settings
from mae_jax.models.mask_rcnn import detections as detections_of_model
from mae_jax.tasks import detection_eval
from mae_jax.tasks.detection_eval import ImageDetections


def test_padding_is_zero_after_normalization():
    pixels = {"mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 2.0)}
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    sizes = np.array([[6, 4], [2, 6]])
    found = np.asarray(detection_eval.normalize(jnp.asarray(images), jnp.asarray(sizes), pixels))
    for image, out, (height, width) in zip(images, found, sizes, strict=True):
        inside = (image[:height, :width] / 255 - np.array(pixels["mean"])) / pixels["std"]
        np.testing.assert_allclose(out[:height, :width], inside, atol=1e-6)
        assert not out[height:].any() and not out[:, width:].any()


def rows():
    """Two images on a canvas of 64 pixels, with four slots each."""
    boxes = np.zeros((2, 4, 4), np.float32)
    boxes[0] = [[8, 4, 24, 20], [30, 30, 50, 40], [0, 0, 5, 5], [10, 10, 20, 20]]
    boxes[1] = [[0, 0, 64, 32], [3, 3, 3, 9], [1, 2, 3, 4], [0, 0, 0, 0]]
    masks = np.zeros((2, 4, 28, 28), np.float32)
    masks[0, 0], masks[0, 1, :14] = 0.9, 0.9  # the whole box, and the upper half of it
    masks[1, 0, :, 14:] = 0.9
    return {
        "boxes": boxes,
        "scores": np.array([[0.9, 0.8, 0.7, 0.1], [0.6, 0.5, 0.4, 0.0]], np.float32),
        "classes": np.array([[2, 0, 1, 1], [1, 1, 0, 0]], np.int32),
        "valid": np.array([[True, True, True, False], [True, True, False, False]]),
        "masks": masks,
        "complete": np.array([True, False]),
        "index": np.array([11, 5]),
        "size": np.array([[64, 32], [32, 64]]),
    }


def test_boxes_and_masks_are_scaled_along_each_axis():
    # 64 x 32 pixels on the canvas, 128 x 32 in the file: rows are scaled, columns are not.
    found = detection_eval.detections(rows(), 0, np.array([128, 32]))
    assert found.index == 11 and found.complete
    # The second box ends at the right border of the image.
    np.testing.assert_array_equal(found.boxes, [[8, 8, 24, 40], [30, 60, 32, 80], [0, 0, 5, 10]])
    assert found.boxes.dtype == np.float32
    np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.8, 0.7]))
    assert found.classes.tolist() == [2, 0, 1]
    first, second, third = (segments.decode(mask) for mask in found.masks)
    assert first.shape == second.shape == (128, 32)
    expected = np.zeros((128, 32), bool)
    expected[8:40, 8:24] = True
    np.testing.assert_array_equal(first, expected)
    expected[:] = False
    expected[60:70, 30:32] = True
    np.testing.assert_array_equal(second, expected)
    assert not third.any()


def test_boxes_without_pixels_are_dropped_and_slots_that_are_not_valid():
    found = detection_eval.detections(rows(), 1, np.array([16, 32]))
    np.testing.assert_array_equal(found.boxes, [[0, 0, 32, 16]])
    assert found.index == 5 and not found.complete and len(found.masks) == 1
    np.testing.assert_array_equal(segments.decode(found.masks[0])[:, 16:], True)
    nothing = rows()
    nothing["valid"][:] = False
    found = detection_eval.detections(nothing, 0, np.array([16, 32]))
    assert found.boxes.shape == (0, 4) and found.masks == []


def test_detections_of_all_processes_are_the_same_list(monkeypatch):
    mine = [detection_eval.detections(rows(), row, np.array([40, 40])) for row in (0, 1)]
    assert [x.index for x in detection_eval.gather(mine)] == [5, 11]
    empty = ImageDetections(
        7, np.zeros((0, 4), np.float32), *(np.zeros(0, t) for t in (np.float32, np.int32)), [], True
    )
    other = json.dumps([detection_eval._to_json(empty)]).encode()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(collectives, "all_gather_bytes", lambda value: [value, other])
    found = detection_eval.gather(mine)
    for image, expected in zip(found, (mine[1], empty, mine[0]), strict=True):
        assert image.index == expected.index and image.complete == expected.complete
        assert image.masks == expected.masks
        for name in ("boxes", "scores", "classes"):
            a, b = getattr(image, name), getattr(expected, name)
            np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize(
    "above, candidates, kept, complete",
    [(3, 4, 5, True), (6, 4, 5, False), (6, 4, 2, True), (6, 6, 5, True)],
    ids=["all considered", "some were not", "enough without them", "exactly as many"],
)
def test_a_limit_on_candidates_that_matters_is_reported(above, candidates, kept, complete):
    """Boxes far apart, the first `above` of which pass the threshold."""
    corner = np.arange(6, dtype=np.float32)[:, None] * 10
    boxes = np.concatenate([corner, corner, corner + 5, corner + 5], axis=1)[:, None]
    scores = np.where(np.arange(6) < above, 0.9, 0.01)[:, None].astype(np.float32)
    settings = Settings(candidates=candidates, detections=kept)
    found = detections_of_model(
        jnp.asarray(boxes), jnp.asarray(scores), jnp.ones(6, bool), jnp.array([99, 99]), settings
    )
    assert bool(found.complete) == complete
    assert int(found.valid.sum()) == min(above, candidates, kept)
