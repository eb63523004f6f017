"""Polygons and run-length encodings, against pycocotools' own numbers and shapely's geometry."""

import numpy as np
import pytest

from mae_jax.data import segments
from tests.parity import official


@pytest.fixture(scope="module")
def instances():
    """16 instances of [60, 80] pixels: their polygons, masks and RLEs as pycocotools makes them."""
    file = official.arrays("detection/j_masks.npz")
    starts = file["poly_offsets"]
    polygons = [[] for _ in file["names"]]
    for number, instance in enumerate(file["poly_instance"]):
        points = file["poly_xy"][starts[number] : starts[number + 1]]
        polygons[instance].append(points.reshape(-1, 2))
    masks = np.unpackbits(file["mask_packed"], axis=2)[..., :80].astype(bool)
    return file | {"polygons": polygons, "masks": masks}


def test_polygons_are_rasterized_as_in_coco(instances):
    assert len(instances["polygons"]) == 16
    for polygons, mask, name in zip(
        instances["polygons"], instances["masks"], instances["names"], strict=True
    ):
        np.testing.assert_array_equal(segments.rasterize(polygons, 60, 80), mask, err_msg=name)
    assert segments.rasterize([], 3, 4).shape == (3, 4)


def test_masks_are_encoded_and_decoded_as_in_coco(instances):
    boxes, areas = instances["rle_bbox_xywh"], instances["areas"]
    for row, (mask, text) in enumerate(
        zip(instances["masks"], instances["rle_strings"], strict=True)
    ):
        rle = segments.encode(mask)
        assert segments.to_coco(rle) == {"size": [60, 80], "counts": str(text)}
        np.testing.assert_array_equal(segments.decode(rle), mask)
        runs = instances["runs_flat"][slice(*instances["runs_offsets"][row : row + 2])].tolist()
        for counts in (str(text), str(text).encode(), runs):
            given = {"size": [60, 80], "counts": counts}
            assert segments.is_valid_rle(given, 60, 80)
            assert segments.compressed(given, 60, 80) == rle
        assert segments.area(rle, 60, 80) == areas[row]
        x, y, width, height = boxes[row]
        if mask.any():
            assert segments.box(rle) == segments.mask_box(mask) == (x, y, x + width, y + height)


def test_areas_and_boxes_of_polygons(instances):
    for polygons, area, box in zip(
        instances["polygons"], instances["areas"], instances["polygon_boxes"], strict=True
    ):
        assert segments.area(polygons, 60, 80) == area
        np.testing.assert_allclose(segments.box(polygons), box, rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": [10, 5, 4]},  # covers 19 of 20 pixels
        {"counts": [10, 5, 6]},
        {"counts": [10, -5, 15]},
        {"counts": [10, 5.0, 5]},
        {"counts": ["10", 5, 5]},
        {"counts": {}},
        {"counts": None},
        {"counts": ":5"},  # the code of [10, 5]
        {"counts": ":5\x00"},
        {"counts": ":5\xff"},
        {"counts": ":5P"},  # P says that another group follows
        {"counts": ""},
        {"counts": b"C" * 40},
        {"size": [5, 4]},
        {"size": (4, 5, 1)},
        {"size": None},
    ],
)
def test_an_rle_that_does_not_cover_the_image_is_refused(changes):
    """pycocotools reads free memory instead."""
    good = {"size": [4, 5], "counts": ":55"}
    assert segments.is_valid_rle(good, 4, 5)
    assert not segments.is_valid_rle(good | changes, 4, 5)
    assert not segments.is_valid_rle({}, 4, 5)


def test_polygons_are_clipped_to_the_image():
    square = np.array([[2.0, 1.0], [6.0, 1.0], [6.0, 5.0], [2.0, 5.0]])
    assert segments.clip_polygon(square, 10, 10) is square
    np.testing.assert_array_equal(
        segments.clip_polygon(square, 3, 4), [[2, 1], [4, 1], [4, 3], [2, 3]]
    )
    for shift in ((20, 0), (0, 20), (-20, 0), (0, -20), (-8, 3)):
        assert segments.clip_polygon(square + shift, 10, 10).shape == (0, 2)


def test_clipping_a_polygon_clips_its_mask():
    """Fifty random polygons with up to nine corners, many of which cross themselves."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.integers(-20, 60, (rng.integers(3, 10), 2)).astype(float)
        whole = segments.rasterize([points + 20], 80, 80)[20:50, 20:60]
        clipped = segments.clip_polygon(points, 30, 40)
        assert (clipped >= 0).all() and (clipped <= (40, 30)).all()
        ours = segments.rasterize([clipped], 30, 40) if len(clipped) else np.zeros((30, 40), bool)
        # Edges that are cut at fractions of a pixel may round to its other side.
        assert (ours != whole).sum() <= 8, points
