"""Figures of detections have boxes and masks at their places, in the colors of the classes."""

import numpy as np
import pytest
from PIL import Image

from mae_jax.data import segments
from mae_jax.data.sources.shapes import ShapesSource
from mae_jax.tasks import coco_eval, detection_figures
from mae_jax.tasks.detection_eval import ImageDetections
from mae_jax.tasks.detection_figures import Drawing, class_color, draw, sheet

NAMES = ["cat", "dog", "a name that is wider than its box"]
GRAY = np.full((400, 400, 3), 100, np.uint8)  # not resized


def drawing(boxes, classes, masks=None, scores=None):
    return Drawing(np.array(boxes, np.float32), np.array(classes), masks, scores)


def blended(number):
    color = np.array(class_color(number))
    return 100 * (1 - detection_figures.MASK_OPACITY) + detection_figures.MASK_OPACITY * color


def test_a_box_is_drawn_where_it_is():
    out = draw(GRAY, drawing([[50, 60, 150, 200]], [1]), NAMES)
    assert out.shape == GRAY.shape and out.dtype == np.uint8
    color = np.zeros_like(GRAY, bool)
    color[60:200, 50:150] = True
    color[62:198, 52:148] = False  # a frame of two pixels
    frame = (out == class_color(1)).all(axis=-1)
    np.testing.assert_array_equal(frame[60:], color[60:, :, 0])
    # The name stands above the box; nothing else has changed.
    assert frame[60 - detection_figures.LABEL_HEIGHT : 60, 50:60].mean() > 0.6
    changed = (out != GRAY).any(axis=-1)
    assert not changed[: 60 - detection_figures.LABEL_HEIGHT].any() and not changed[200:].any()
    assert not changed[:, :50].any() and not changed[62:198, 52:148].any()


def test_names_stay_inside_the_image():
    out = draw(GRAY, drawing([[380, 0, 400, 30]], [2]), NAMES)
    label = (out == class_color(2)).all(axis=-1)
    assert label[:13].sum() > 1000 and label[5, :380].any()


def test_a_mask_is_a_tint_of_the_color_of_its_class():
    masks = np.zeros((2, 400, 400), bool)
    masks[0, 100:200, 100:140] = True
    masks[1, 120:150, 110:120] = True  # smaller: drawn over the first
    boxes = [[100, 100, 140, 200], [110, 120, 120, 150]]
    out = draw(GRAY, drawing(boxes, [0, 2], masks), NAMES).astype(float)
    np.testing.assert_allclose(out[180, 125], blended(0), atol=1)
    color = np.array(class_color(2))
    over = blended(0) * (1 - detection_figures.MASK_OPACITY)
    np.testing.assert_allclose(
        out[135, 115], over + detection_figures.MASK_OPACITY * color, atol=1.01
    )
    np.testing.assert_array_equal(out[180, 200], 100)


@pytest.mark.parametrize("side, drawn", [(40, 320), (400, 400), (1280, 640)])
def test_small_images_are_enlarged_and_large_ones_reduced(side, drawn):
    image = np.full((side, side // 2, 3), 100, np.uint8)
    zoom = drawn / side
    box = np.array([side / 8, side / 4, side / 4, side / 2])
    out = draw(image, drawing([box], [0]), NAMES)
    assert out.shape == (drawn, drawn // 2, 3)
    x0, y0, x1, y1 = (box * zoom).astype(int)
    color = (out == class_color(0)).all(axis=-1)
    assert color[y0:y1, x0 : x0 + 2].all() and color[y1 - 2 : y1, x0:x1].all()
    assert not color[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].any()


def test_classes_have_colors_of_their_own():
    colors = np.array([class_color(number) for number in range(80)])
    assert len(np.unique(colors, axis=0)) > 70
    assert np.abs(np.diff(colors, axis=0)).max(axis=1).min() > 60  # neighbors differ clearly


def test_scores_are_written_and_low_ones_left_out():
    box = [[50, 60, 350, 200]]
    plain = draw(GRAY, drawing(box, [0]), NAMES)
    scored = draw(GRAY, drawing(box, [0], scores=np.array([0.75])), NAMES)
    label = slice(60 - detection_figures.LABEL_HEIGHT, 60)
    widths = [(x[label] != GRAY[label]).any(axis=(0, 2)).sum() for x in (plain, scored)]
    assert widths[1] > widths[0] + 15
    masks = [coco_eval.encode_mask(np.full((4, 4), i % 2, bool)) for i in range(3)]
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = ImageDetections(0, boxes, np.float32([0.9, 0.5, 0.4]), np.array([2, 1, 0]), masks, True)
    kept = detection_figures.predicted(found, 0.5)
    np.testing.assert_array_equal(kept.boxes, boxes[:2])
    assert kept.classes.tolist() == [2, 1] and kept.masks is not None
    assert kept.masks[1].all() and not kept.masks[0].any()


def test_a_sheet_places_images_of_different_sizes_in_rows():
    cells = [(str(i), np.full((20 + 5 * i, 60 - 5 * i, 3), 40 * i, np.uint8)) for i in range(5)]
    out = sheet(cells, columns=2)
    cell, gap, title = 60 + 4, 4, 18
    tops = [0, title + 25 + gap, title + 25 + gap + title + 35 + gap]
    assert out.shape == (tops[2] + title + 40 + gap + gap, 2 * cell + gap, 3)
    for i, (_, image) in enumerate(cells):
        top, left = tops[i // 2] + title, gap + (i % 2) * cell
        height, width = image.shape[:2]
        np.testing.assert_array_equal(out[top : top + height, left : left + width], image)
        assert (out[top : top + height, left + width : left + width + gap] == 255).all()
        assert (out[top - title : top, left : left + 20] < 128).any()  # the title
    captioned = sheet(cells, columns=2, caption="caption")
    assert captioned.shape[0] == out.shape[0] + title - gap
    assert (captioned[-title:] < 128).any()
    assert sheet([], columns=2).ndim == 3


def test_detections_are_compared_with_the_objects_of_the_source():
    source = ShapesSource("eval", start=0, count=9, image_size=(48, 48), channels=3, objects=True)
    (record,) = source.read([4])
    truth = record.annotation
    found = ImageDetections(
        4, truth["boxes"], np.ones(len(truth["boxes"]), np.float32), truth["classes"],
        [segments.to_coco(x) for x in truth["segments"]], True,
    )  # fmt: skip
    data = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    names = source.classes or []
    out = detection_figures.comparison(source, [found], names, data, min_score=0.5)
    width = (out.shape[1] - 4) // 2
    image = Image.fromarray(record.data).resize((320, 320), Image.Resampling.BILINEAR)
    left, right = out[18:338, 4:324], out[18:338, 4 + width : 4 + width + 320]
    # The same objects on both sides, but for the scores; the image shows where there is nothing.
    assert (left == right).all(axis=-1).mean() > 0.9 and not np.array_equal(left, right)
    corner = np.zeros((60, 60), bool)
    for mask in map(segments.decode, found.masks):
        corner |= mask
    free = np.array(Image.fromarray(~corner).resize((320, 320))) & (left == right).all(axis=-1)
    near = np.abs(left.astype(int) - np.asarray(image)).max(axis=-1) < 3
    assert (near & free).sum() > 0.5 * free.sum()
