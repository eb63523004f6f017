"""Scores of detections, against pycocotools run on COCO's own files."""

import csv
import json
from typing import NamedTuple

import numpy as np
import pytest

from mae_jax.data import segments
from mae_jax.data.sources.base import Subset
from mae_jax.data.sources.coco import annotated_images
from mae_jax.data.sources.shapes import ShapesSource
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import coco_eval
from tests.data.helpers import JPEG
from tests.parity import official

ANNOTATIONS = official.path("detection/l_coco_annotations.json")
COUNTS = [("circle", 5), ("square", 4), ("triangle", 4)]  # without the crowd


class Detections(NamedTuple):
    index: int
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: list


@pytest.fixture(scope="module")
def reference():
    return official.arrays("detection/l_coco_eval.npz")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The annotated images, whose pixels are never read."""
    folder = tmp_path_factory.mktemp("images")
    with open(ANNOTATIONS, encoding="utf-8") as file:
        for image in json.load(file)["images"]:
            (folder / image["file_name"]).write_bytes(JPEG)
    return annotated_images(str(folder), ANNOTATIONS, classes=None)


@pytest.fixture(scope="module")
def submitted():
    with open(official.path("detection/l_coco_detections.json"), encoding="utf-8") as file:
        return json.load(file)


def by_image(source, submitted):
    """What a model would detect, so that `coco_results` makes the submission of it."""
    ids, found = source.image_ids(range(len(source))), []
    for index, id in enumerate(ids):
        mine = [x for x in submitted if x["image_id"] == id]
        boxes = np.array([x["bbox"] for x in mine], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        numbers = [source.category_ids.index(x["category_id"]) for x in mine]
        scores, masks = [x["score"] for x in mine], [x["segmentation"] for x in mine]
        found.append(Detections(index, boxes, np.array(scores), np.array(numbers), masks))
    return found


def test_scores_are_those_of_coco(source, submitted, reference, capsys):
    scores = coco_eval.evaluate(source, range(len(source)), submitted)
    assert scores.metrics.keys() == {*coco_eval.METRICS, "count"}
    for kind, prefix in coco_eval.PREFIX.items():
        stats = [v for k, v in scores.metrics.items() if k.startswith(prefix)]
        np.testing.assert_allclose(stats, reference[f"{kind}_stats"], atol=1e-9)
        by_class = [x.metrics[f"{prefix}_ap"] for x in scores.classes]
        np.testing.assert_allclose(by_class, reference[f"{kind}_ap_per_category"], atol=1e-9)
    assert [(x.name, x.objects) for x in scores.classes] == COUNTS
    assert capsys.readouterr().out == ""
    # The boxes of results for masks would decide which of them are small.
    other = reference["segm_stats_when_bbox_left_in"]
    assert np.abs(other - reference["segm_stats"]).max() > 0.01


def test_results_have_the_ids_of_the_annotations(source, submitted, reference):
    assert source.category_ids == reference["category_ids"].tolist() == [1, 5, 17]
    results = coco_eval.coco_results(source, by_image(source, submitted))
    assert len(results) == len(submitted) == 48
    order = sorted(submitted, key=lambda x: x["image_id"])
    for ours, theirs in zip(results, order, strict=True):
        np.testing.assert_allclose(ours.pop("bbox"), theirs["bbox"], atol=1e-4)
        assert ours == {k: v for k, v in theirs.items() if k != "bbox"}
    again = coco_eval.evaluate(source, range(len(source)), submitted)
    results = coco_eval.coco_results(source, by_image(source, submitted))
    scores = coco_eval.evaluate(source, range(len(source)), json.loads(json.dumps(results)))
    assert scores.metrics == pytest.approx(again.metrics, abs=1e-9)


def test_a_part_of_the_images_is_scored_by_itself(source, submitted):
    part = Subset(source, np.array([4, 0, 2]), part="three")
    found = [x for x in by_image(source, submitted) if x.index in (0, 2)]
    whole = coco_eval.coco_results(source, found)
    places = {4: 0, 0: 1, 2: 2}
    results = coco_eval.coco_results(part, [x._replace(index=places[x.index]) for x in found])
    assert results == whole
    direct = coco_eval.evaluate(source, [0, 2], whole)
    scores = coco_eval.evaluate(part, [1, 2], results)
    assert scores.metrics == direct.metrics and scores.metrics["count"] == 2
    assert {x.index for x in scores.images} == {1, 2}
    assert {x.index for x in direct.images} == {0, 2}


def test_the_images_with_the_worst_scores_come_first(source, submitted, reference):
    images = coco_eval.evaluate(source, range(len(source)), submitted).images
    assert len(images) == 6 and [x.f1 for x in images] == sorted(x.f1 for x in images)
    # Counted from pycocotools' own matches at an IoU of 0.5.
    matches = reference["segm_matches_iou50__image_category_dt_gt_ignored"]
    ids, scores = source.image_ids(range(6)), [x["score"] for x in submitted]
    for image in images:
        mine = [
            (matched > 0)
            for id, _, detection, matched, ignored in matches.tolist()
            if id == ids[image.index] and not ignored and scores[detection - 1] >= 0.5
        ]
        assert (image.found, image.wrong) == (sum(mine), len(mine) - sum(mine))
    assert sum(x.objects for x in images) == 13


def test_nothing_detected_and_nothing_to_detect(source):
    scores = coco_eval.evaluate(source, range(len(source)), [])
    assert scores.metrics["box_ap"] == scores.metrics["mask_ar100"] == 0
    assert all(x.found == x.wrong == 0 for x in scores.images)
    empty = next(i for i in range(6) if not len(source.annotation(i)["boxes"]))
    scores = coco_eval.evaluate(source, [empty], [])
    assert set(scores.metrics.values()) == {-1.0, 1.0}  # the latter is the count
    assert scores.images[0].f1 == 1
    with pytest.raises(UsageError, match="no image to evaluate"):
        coco_eval.evaluate(source, [], [])


def perfect(source, indices):
    """The objects of a source as detections."""
    for index in indices:
        record = source.read([index])[0].annotation
        height, width = record["size"]
        masks = [
            coco_eval.encode_mask(
                segments.decode(segment)
                if isinstance(segment, dict)
                else segments.rasterize(segment, height, width)
            )
            for segment in record["segments"]
        ]
        number = len(masks)
        yield Detections(index, record["boxes"], np.full(number, 0.9), record["classes"], masks)


def test_shapes_are_scored_by_what_can_be_seen_of_them():
    source = ShapesSource("train", start=0, count=9, image_size=(40, 48), channels=3, objects=True)
    results = coco_eval.coco_results(source, perfect(source, range(9)))
    scores = coco_eval.evaluate(source, range(9), results)
    assert scores.metrics["box_ap"] == scores.metrics["mask_ap"] == 1
    assert all(x.f1 == 1 and x.objects for x in scores.images)
    wrong = [x | {"category_id": x["category_id"] % 12 + 1} for x in results]
    assert coco_eval.evaluate(source, range(9), wrong).metrics["mask_ap50"] < 0.1
    boxes = [{k: v for k, v in x.items() if k != "segmentation"} for x in results]
    only = coco_eval.evaluate(source, range(9), boxes, kinds=["bbox"])
    assert only.metrics["box_ap"] == 1 and "mask_ap" not in only.metrics


def test_numbers_of_zero_are_numbers(tmp_path):
    """pycocotools takes a match with annotation 0 for no match."""
    (tmp_path / "0.jpg").write_bytes(JPEG)
    entry = {"id": 0, "image_id": 0, "category_id": 0, "bbox": [1, 1, 5, 5]}
    content = {
        "images": [{"id": 0, "file_name": "0.jpg", "height": 8, "width": 8}],
        "categories": [{"id": 0, "name": "thing"}],
        "annotations": [entry],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    source = annotated_images(str(tmp_path), str(path), classes=None)
    results = coco_eval.coco_results(source, perfect(source, [0]))
    assert coco_eval.evaluate(source, [0], results).metrics["box_ap"] > 0.999


def test_tables(source, submitted, tmp_path):
    scores = coco_eval.evaluate(source, range(len(source)), submitted)
    paths = scores.write(str(tmp_path / "new"), submitted, lambda index: f"image {index}")
    with open(paths[0], encoding="utf-8") as file:
        assert json.load(file) == submitted
    tables = []
    for path in paths[1:]:
        with open(path, encoding="utf-8", newline="") as file:
            tables.append(list(csv.reader(file)))
    assert tables[0][0] == ["class", "objects", "box_ap", "box_ap50", "mask_ap", "mask_ap50"]
    assert [(name, int(count)) for name, count, *_ in tables[0][1:]] == COUNTS
    assert tables[1][0] == ["image", "objects", "found", "wrong", "f1"]
    assert len(tables[1]) == 7 and tables[1][1][0] == f"image {scores.images[0].index}"
