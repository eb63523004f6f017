"""Large-scale jitter, against detectron2's pixels, boxes and masks."""

import logging

import numpy as np
import pytest

from mae_jax.data import Record, eval_batches, segments, train_batches
from mae_jax.data.options import DataOptions
from mae_jax.data.transforms.scale_jitter import (
    FLIP,
    ScaleJitter,
    jittered_view,
    visible_objects,
    whole_view,
)
from tests.data.helpers import MemorySource, picture
from tests.parity import official

HEIGHT, WIDTH, SIZE = 45, 60, 64  # of the image; of the canvas
CHAINS = range(8)


@pytest.fixture(scope="module")
def reference():
    return official.arrays("detection/k_large_scale_jitter.npz")


@pytest.fixture(scope="module")
def polygons(reference):
    """Of five instances; the third has two parts."""
    starts = reference["chain_poly_offsets"]
    found = [[] for _ in reference["chain_names"]]
    for number, instance in enumerate(reference["chain_poly_instance"]):
        points = reference["chain_poly_xy"][starts[number] : starts[number + 1]]
        found[instance].append(points.reshape(-1, 2))
    return found


def annotation(outlines, crowd=(), size=(HEIGHT, WIDTH)):
    """A detection record's annotation; the transform takes boxes from the outlines."""
    count = len(outlines)
    return {
        "boxes": np.zeros((count, 4), np.float32),
        "classes": np.arange(count, dtype=np.int32) + 10,
        "crowd": np.isin(np.arange(count), crowd),
        "segments": tuple(outlines),
        "size": size,
        "image_id": 7,
    }


def view_of(reference, chain):
    flip, scale, place = reference[f"chain{chain}/flip_scale_u"].tolist()
    return jittered_view(
        HEIGHT, WIDTH, scale=scale, place=place, target=(SIZE, SIZE), mirror=bool(flip)
    )


def truncated(points, view):
    """Polygons of integers as detectron2 has them after resizing: it rounds them toward zero."""
    if (points % 1).any():
        return points
    ratio = np.array([view.full[1] / WIDTH, view.full[0] / HEIGHT])
    mirror = np.array([[WIDTH, 0]]) * view.mirror
    sign = np.array([-1 if view.mirror else 1, 1])
    return mirror + sign * (np.trunc((mirror + sign * points) * ratio) / ratio)


def test_sizes_and_offsets(reference):
    rows = reference["lsj_h_w_scale_u__newh_neww_y0_x0_croph_cropw__testh_testw"]
    for height, width, scale, place, *expected in rows.tolist():
        size = int(height), int(width)
        view = jittered_view(*size, scale=scale, place=place, target=(1024, 1024), mirror=False)
        assert [*view.full, *view.offset, *view.size] == expected[:6]
        assert [*whole_view(*size, target=(1024, 1024)).size] == expected[6:]


def test_every_view_has_pixels_and_fits():
    for height, width, scale in [(1, 2000, 0.1), (2000, 1, 0.1), (3, 500, 2.0), (1, 1, 2.0)]:
        for place in (0.0, 0.999):
            view = jittered_view(
                height, width, scale=scale, place=place, target=(32, 64), mirror=False
            )
            assert min(view.full) >= 1 and min(view.size) >= 1
            assert view.size[0] <= 32 and view.size[1] <= 64
            assert all(
                o + s <= f for o, s, f in zip(view.offset, view.size, view.full, strict=True)
            )
        assert min(whole_view(height, width, target=(32, 64)).size) >= 1
    assert whole_view(100, 100, target=(32, 64)).size == (32, 32)


def draws_of(reference, chain, low=0.1, high=2.0):
    flip, scale, place = reference[f"chain{chain}/flip_scale_u"].tolist()
    return np.array([0.4 if flip else 0.6, (scale - low) / (high - low), place])


@pytest.mark.parametrize("chain", CHAINS)
def test_pixels_are_those_of_pillow_and_the_rest_is_zero(reference, polygons, chain):
    expected = reference[f"chain{chain}/image"]
    height, width = expected.shape[:2]
    for resizer, tolerance in (("pillow", 0), ("auto", 1)):
        transform = ScaleJitter({"resizer": resizer}, image_size=(SIZE, SIZE), train=True)
        row = transform(reference["image"], annotation(polygons), draws_of(reference, chain))
        assert row["size"].tolist() == [height, width]
        assert row["original_size"].tolist() == [HEIGHT, WIDTH]
        difference = row["image"][:height, :width].astype(int) - expected
        assert np.abs(difference).max() <= tolerance
        assert not row["image"][height:].any() and not row["image"][:, width:].any()


@pytest.mark.parametrize("chain", CHAINS)
def test_boxes_and_masks_are_those_of_the_clipped_polygons(reference, polygons, chain):
    view, kept = view_of(reference, chain), reference[f"chain{chain}/kept"]
    outlines = [[truncated(points, view) for points in parts] for parts in polygons]
    found, total = visible_objects(annotation(outlines), view, limit=9)
    assert total == kept.sum()
    assert found.classes.tolist() == (np.flatnonzero(kept) + 10).tolist()
    boxes = reference[f"chain{chain}/boxes_recomputed"][kept]
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
    masks = np.unpackbits(reference[f"chain{chain}/mask_packed"], axis=2)[kept, :, : view.size[1]]
    np.testing.assert_array_equal(found.masks, masks.astype(bool))


@pytest.mark.parametrize("chain", CHAINS)
def test_masks_in_rle_take_the_nearest_pixels(reference, polygons, chain):
    view = view_of(reference, chain)
    packed = reference[f"chain{chain}/bitmap_packed"]
    masks = np.unpackbits(packed, axis=2)[..., : view.size[1]].astype(bool)
    kept = masks.any(axis=(1, 2))
    rles = [segments.encode(segments.rasterize(parts, HEIGHT, WIDTH)) for parts in polygons]
    found, _ = visible_objects(annotation(rles), view, limit=9)
    assert found.classes.tolist() == (np.flatnonzero(kept) + 10).tolist()
    np.testing.assert_array_equal(found.boxes, reference[f"chain{chain}/bitmap_boxes"][kept])
    np.testing.assert_array_equal(found.masks, masks[kept])


def rectangle(x0, y0, x1, y1):
    return [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)]


OUTLINES = [
    rectangle(10, 10, 20, 20),
    rectangle(0, 0, 60, 45),
    rectangle(30, 10, 55, 40),
    segments.encode(np.pad(np.ones((12, 13), bool), ((3, 30), (40, 7)))),
]


def row_of(outlines, crowd=(), draws=(0.9, 0.5, 0.5), **config):
    config = {"scale_jitter": (1.0, 1.0), "resizer": "pillow", **config}
    transform = ScaleJitter(config, image_size=(SIZE, SIZE), train=True)
    image = picture(0, HEIGHT, WIDTH)
    row = transform(image, annotation(outlines, crowd), np.array(draws))
    for name, field in transform.fields.items():
        assert np.shape(row[name]) == field.shape and row[name].dtype == field.dtype
    return row


def test_crowds_are_not_trained_on():
    row = row_of(OUTLINES, crowd=[1], max_objects=5)
    assert row["object_valid"].tolist() == [True, True, True, False, False]
    assert row["classes"].tolist() == [10, 12, 13, 0, 0]
    assert row_of(OUTLINES, crowd=[0, 1, 2, 3])["object_valid"].sum() == 0


def test_the_largest_are_kept_in_order_and_it_is_logged_once(caplog):
    transform = ScaleJitter(
        {"scale_jitter": (1.0, 1.0), "max_objects": 2}, image_size=(SIZE, SIZE), train=True
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            row = transform(
                picture(0, HEIGHT, WIDTH), annotation(OUTLINES), np.array([0.9, 0.5, 0.5])
            )
    assert row["classes"].tolist() == [11, 12] and row["object_valid"].all()
    assert "an image has 4 objects, more than --config.data.max_objects=2" in caplog.text
    assert len(caplog.records) == 1


def test_a_box_without_extent_is_dropped_and_no_image_is_refused():
    flat = [np.array([[5.0, 5.0], [9.0, 5.0], [7.0, 5.0]])]
    empty = segments.encode(np.zeros((HEIGHT, WIDTH), bool))
    row = row_of([flat, empty, rectangle(70, 0, 80, 9), rectangle(60, 3, 60, 9), []])
    assert not row["object_valid"].any() and not row["boxes"].any() and not row["masks"].any()
    assert not row_of([])["object_valid"].any()


def test_masks_are_packed_at_the_size_of_the_canvas():
    row = row_of(OUTLINES, max_objects=4)
    masks = np.unpackbits(row["masks"], axis=2).astype(bool)
    assert row["masks"].shape == (4, SIZE, SIZE // 8)
    for mask, (x0, y0, x1, y1) in zip(masks, row["boxes"], strict=True):
        # The image is resized by 64 / 60.
        assert mask[round(y0) : round(y1), round(x0) : round(x1)].mean() > 0.9
        assert mask.sum() <= (x1 - x0 + 1) * (y1 - y0 + 1)
    np.testing.assert_allclose(row["boxes"][0], np.array([10, 10, 20, 20]) * 64 / 60, rtol=1e-6)


def test_a_flip_turns_pixels_boxes_and_masks():
    plain, flipped = (row_of(OUTLINES, draws=(flip, 0.5, 0.5)) for flip in (0.5, 0.4999))
    assert (row_of(OUTLINES, draws=(0.1, 0.5, 0.5), hflip=False)["boxes"] == plain["boxes"]).all()
    width = plain["size"][1]
    expected = plain["boxes"][:4] * (-1, 1, -1, 1) + (width, 0) * 2
    np.testing.assert_allclose(flipped["boxes"][:4, [2, 1, 0, 3]], expected, atol=1e-5)
    masks = [np.unpackbits(row["masks"], axis=2)[3] for row in (plain, flipped)]
    np.testing.assert_array_equal(masks[0][:, ::-1], masks[1])
    height = plain["size"][0]
    difference = flipped["image"][:height].astype(int) - plain["image"][:height, ::-1]
    assert np.abs(difference).max() <= 1


def test_evaluation_shows_the_whole_image_without_objects():
    transform = ScaleJitter({}, image_size=(32, 48), train=False)
    assert transform.num_draws == 0
    row = transform(picture(0, HEIGHT, WIDTH), annotation(OUTLINES), np.empty(0))
    assert row.keys() == transform.fields.keys() == {"image", "size", "original_size"}
    assert row["size"].tolist() == [32, 43] and row["image"].shape == (32, 48, 3)
    assert row["image"][:, :43].any() and not row["image"][:, 43:].any()


class Objects(MemorySource):
    def read(self, indices):
        return [Record(self.data[i], annotation(OUTLINES, size=(HEIGHT, WIDTH))) for i in indices]


def test_batches_take_scale_flip_and_place_from_their_draws():
    source = Objects([picture(i, HEIGHT, WIDTH) for i in range(6)])
    common = {"data_config": {"workers": 1}, "image_size": (SIZE, SIZE), "channels": 3}
    transform = ScaleJitter(DataOptions(max_objects=4), image_size=(SIZE, SIZE), train=True)
    batches = train_batches(source, **common, batch_size=6, seed=3, transform=transform)
    batch = next(batches)
    batches.close()
    assert len({tuple(size) for size in batch["size"]}) > 2
    assert {x: batch[x].shape[1:] for x in ("boxes", "classes", "object_valid", "masks")} == {
        "boxes": (4, 4), "classes": (4,), "object_valid": (4,), "masks": (4, SIZE, SIZE // 8),
    }  # fmt: skip
    view = ScaleJitter({}, image_size=(SIZE, SIZE), train=False)
    (batch,) = eval_batches(source, **common, batch_size=6, transform=view)
    assert (batch["size"] == (48, 64)).all() and batch["valid"].all()
    assert FLIP == 0  # the first draw


def test_an_image_of_another_size_than_its_annotation_is_bad():
    images = [picture(i, HEIGHT, WIDTH) for i in range(4)] + [picture(4, WIDTH, HEIGHT)]
    view = ScaleJitter({}, image_size=(SIZE, SIZE), train=False)
    batches = eval_batches(
        Objects(images),
        data_config={"workers": 1},
        image_size=(SIZE, SIZE),
        channels=3,
        batch_size=5,
        transform=view,
    )
    (batch,) = batches
    assert batch["valid"].tolist() == [True] * 4 + [False]
    assert batches.bad_count == 1
