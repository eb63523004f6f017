"""Average precision of detections, computed by pycocotools, which is imported with the first use.

Results are dicts in COCO's format, as in its submissions: `image_id`, `category_id` and `bbox` (x,
y, width, height) with the numbers of the annotation file, `score`, and `segmentation` as RLE.
"""

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from mae_jax.data import segments
from mae_jax.data.sources.base import DetectionSource, Source, unwrapped
from mae_jax.runtime import filesystem
from mae_jax.runtime.errors import require

# The twelve numbers of COCO in its order; objects are small up to 32 x 32 pixels and large from
# 96 x 96 on. -1: there is no such object.
_STATS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
PREFIX = {"bbox": "box", "segm": "mask"}  # of the metrics, by COCO's name of what is compared
METRICS = tuple(f"{prefix}_{name}" for prefix in PREFIX.values() for name in _STATS)
_IMAGE_SCORE = 0.5  # detections with at least this score count for the scores of single images


class ImageDetections(Protocol):
    """The n detections in one image.

    Attributes:
      index: of the image in its source.
      boxes: [n, 4], (x0, y0, x1, y1) in pixels of the original image.
      scores, classes: [n].
      masks: the RLE of each (`encode_mask`), at the original size; empty if there are only boxes.
    """

    @property
    def index(self) -> int: ...

    @property
    def boxes(self) -> np.ndarray: ...

    @property
    def scores(self) -> np.ndarray: ...

    @property
    def classes(self) -> np.ndarray: ...

    @property
    def masks(self) -> Sequence[Mapping[str, Any]]: ...


class ClassScores(NamedTuple):
    """Scores of one class.

    Attributes:
      name: of the class.
      objects: number of objects in the images, without crowds.
      metrics: `box_ap`, `box_ap50`, `mask_ap`, `mask_ap50`; -1 without objects.
    """

    name: str
    objects: int
    metrics: dict[str, float]


class ImageScores(NamedTuple):
    """How well the objects of one image are found, at an IoU of 0.5.

    Attributes:
      index: in the source.
      objects: number of objects, without crowds.
      found: how many of them are detected with the right class and a score of 0.5 or more.
      wrong: number of other detections with such a score.
    """

    index: int
    objects: int
    found: int
    wrong: int

    @property
    def f1(self) -> float:
        """2 found / (objects + detections); 1 if there is neither."""
        total = self.objects + self.found + self.wrong
        return 2 * self.found / total if total else 1.0


class Scores(NamedTuple):
    """Scores of detections.

    Attributes:
      metrics: of METRICS, those of the compared kinds; and `count`, the number of images.
      classes: in the order of the class numbers.
      images: the worst first.
    """

    metrics: dict[str, float]
    classes: list[ClassScores]
    images: list[ImageScores]

    def write(
        self, folder: str, results: Sequence[Mapping[str, Any]], describe: Callable[[int], str]
    ) -> list[str]:
        """Writes detections.json, per_class.csv and per_image.csv; returns their paths.

        Args:
          folder: created if missing.
          results: of `coco_results`.
          describe: maps the index of an image to its origin, such as a path.
        """
        os.makedirs(folder, exist_ok=True)
        names = ("detections.json", "per_class.csv", "per_image.csv")
        paths = [os.path.join(folder, name) for name in names]
        filesystem.write(paths[0], json.dumps(results).encode())
        columns = list(self.classes[0].metrics)
        _write_table(
            paths[1],
            ["class", "objects", *columns],
            (
                [name, objects, *(f"{metrics[x]:.4f}" if objects else "" for x in columns)]
                for name, objects, metrics in self.classes
            ),
        )
        _write_table(
            paths[2],
            ["image", "objects", "found", "wrong", "f1"],
            ([describe(x.index), *x[1:], f"{x.f1:.4f}"] for x in self.images),
        )
        return paths


def _write_table(path: str, header: list[str], rows: Iterable[list[Any]]) -> None:
    with (
        filesystem.replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """The RLE of a mask, bool [h, w], as JSON values."""
    return segments.to_coco(segments.encode(mask))


def coco_results(source: Source, detections: Iterable[ImageDetections]) -> list[dict[str, Any]]:
    """Detections in COCO's format.

    Args:
      source: of the images; it may be a subset or a cache.
      detections: by image.
    """
    results = []
    for image in detections:
        inner, index = _inner(source, [image.index])
        (image_id,) = inner.image_ids(index)
        boxes = np.array(image.boxes, np.float32).reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        for row, (box, score, number) in enumerate(
            zip(boxes.tolist(), image.scores, image.classes, strict=True)
        ):
            result = {
                "image_id": image_id,
                "category_id": inner.category_ids[int(number)],
                "bbox": box,
                "score": float(score),
            }
            if len(image.masks):
                result["segmentation"] = image.masks[row]
            results.append(result)
    return results


def detections_json(
    found: Iterable[ImageDetections], classes: Sequence[str], describe: Callable[[int], str]
) -> dict[str, Any]:
    """Detections in images that are in no annotation file, as a whole file in COCO's format.

    Annotation tools load it: detections are `annotations` with a `score`.

    Args:
      found: by image.
      classes: names.
      describe: maps the index of an image to its path.
    """
    images, annotations = [], []
    for image in found:
        entry = {"id": image.index, "file_name": describe(image.index)}
        for box, score, number, mask in zip(
            image.boxes.tolist(), image.scores, image.classes, image.masks, strict=True
        ):
            height, width = mask["size"]
            entry |= {"height": height, "width": width}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.index,
                    "category_id": int(number) + 1,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "score": float(score),
                    "segmentation": dict(mask),
                    "area": float(segments.area(mask, height, width)),
                    "iscrowd": 0,
                }
            )
        images.append(entry)
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def evaluate(
    source: Source,
    indices: Sequence[int] | np.ndarray,
    results: Sequence[Mapping[str, Any]],
    kinds: Sequence[str] = ("bbox", "segm"),
) -> Scores:
    """Scores of results.

    Args:
      source: of the images; it may be a subset or a cache.
      indices: of the images to evaluate, each once. An image without results counts as one in
        which nothing was detected.
      results: of `coco_results`, for these images.
      kinds: what to compare: `bbox` (boxes) and `segm` (masks). Images are scored by the last.

    Raises:
      UsageError: there are no images.
    """
    require(len(indices) > 0, "no image to evaluate detections on")
    inner, places = _inner(source, indices)
    truth = inner.coco_json(places)
    evaluations = {kind: _evaluation(truth, results, kind) for kind in kinds}
    metrics = {"count": float(len(indices))}
    for kind, evaluation in evaluations.items():
        names = (f"{PREFIX[kind]}_{name}" for name in _STATS)
        metrics |= dict(zip(names, map(float, evaluation.stats), strict=True))
    images = _image_scores(evaluations[kinds[-1]], dict(zip(_ids(truth), indices, strict=True)))
    return Scores(metrics, _class_scores(truth, evaluations), images)


def _inner(
    source: Source, indices: Sequence[int] | np.ndarray
) -> tuple[DetectionSource, np.ndarray]:
    inner, places = unwrapped(source, indices)
    return cast(DetectionSource, inner), places


def _ids(truth: Mapping[str, Any]) -> list[int]:
    return [image["id"] for image in truth["images"]]


def _evaluation(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str) -> Any:
    """A COCOeval that has accumulated and summarized."""
    from pycocotools.cocoeval import COCOeval

    # With a box in them, results for masks are taken as small, medium or large by the box.
    unused = {"segm": "bbox", "bbox": "segmentation"}[kind]
    detected = [{k: v for k, v in result.items() if k != unused} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        objects = _index(truth)
        # pycocotools cannot load an empty list.
        loaded = objects.loadRes(detected) if detected else _index({**truth, "annotations": []})
        evaluation = COCOeval(objects, loaded, cast(Any, kind))
        evaluation.params.imgIds = _ids(truth)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _index(dataset: Mapping[str, Any]) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = cast(Any, {"info": {}, **dataset})
    coco.createIndex()
    return coco


def _class_scores(truth: Mapping[str, Any], evaluations: Mapping[str, Any]) -> list[ClassScores]:
    """Scores by class; the classes are in the order of `truth`."""
    counts = {category["id"]: 0 for category in truth["categories"]}
    for entry in truth["annotations"]:
        counts[entry["category_id"]] += not entry["iscrowd"]
    metrics: dict[int, dict[str, float]] = {id: {} for id in counts}
    for kind, evaluation in evaluations.items():
        # [IoU thresholds, recalls, classes] for objects of all sizes and 100 detections.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        for place, id in enumerate(evaluation.params.catIds):
            metrics[id][f"{PREFIX[kind]}_ap"] = _mean(precision[:, :, place])
            metrics[id][f"{PREFIX[kind]}_ap50"] = _mean(precision[0, :, place])
    names = {category["id"]: category["name"] for category in truth["categories"]}
    return [ClassScores(names[id], count, metrics[id]) for id, count in counts.items()]


def _mean(precision: np.ndarray) -> float:
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else -1.0


def _image_scores(evaluation: Any, index_of: Mapping[int, int]) -> list[ImageScores]:
    """Scores by image, the worst first.

    Args:
      evaluation: a COCOeval.
      index_of: index of each image id.
    """
    totals = {id: np.zeros(3, np.int64) for id in index_of}
    everything = list(evaluation.params.areaRng[0])
    for entry in evaluation.evalImgs:  # by class, size and image
        if entry is None or list(entry["aRng"]) != everything:
            continue
        matched, ignored = entry["dtMatches"][0], np.asarray(entry["dtIgnore"][0], bool)
        counted = (np.asarray(entry["dtScores"]) >= _IMAGE_SCORE) & ~ignored
        found = int((counted & (matched > 0)).sum())
        objects = int((np.asarray(entry["gtIgnore"]) == 0).sum())
        totals[entry["image_id"]] += objects, found, int(counted.sum()) - found
    scores = [ImageScores(int(index_of[id]), *map(int, total)) for id, total in totals.items()]
    return sorted(scores, key=lambda image: (image.f1, -image.objects, image.index))
