"""Outlines of objects: polygons, or masks in COCO's run-length encoding (RLE).

A segment is a list of polygons, float64 [m, 2] of (x, y) in pixels, whose union is the object; or
an RLE as COCO writes it: {"size": [height, width], "counts": bytes}. Runs go down the columns, and
the first one counts zeros. pycocotools rasterizes and decodes, and is imported with the first mask.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Polygons = list[np.ndarray]
Rle = Mapping[str, Any]
Segment = Polygons | Rle


def _api() -> Any:
    from pycocotools import mask

    return mask


def rasterize(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The mask of a union of polygons, bool [height, width], pixel for pixel as in COCO's API."""
    if not polygons:
        return np.zeros((height, width), bool)
    flat = [points.ravel().tolist() for points in polygons]
    api = _api()
    return api.decode(api.merge(api.frPyObjects(flat, height, width))).astype(bool)


def decode(rle: Rle) -> np.ndarray:
    """The mask of an RLE, bool [height, width]. The RLE must be valid (`is_valid_rle`)."""
    return _api().decode(dict(rle)).astype(bool)


def encode(mask: np.ndarray) -> dict[str, Any]:
    """The RLE of a mask, bool or 0/1 [height, width]; its `counts` are bytes."""
    rle = _api().encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"]}


def area(segment: Segment, height: int, width: int) -> float:
    """Number of pixels of a segment in an image of height x width."""
    if isinstance(segment, Mapping):
        return float(_api().area(dict(segment)))
    return float(rasterize(segment, height, width).sum())


def box(segment: Segment) -> tuple[float, float, float, float]:
    """The box (x0, y0, x1, y1) around a segment that is not empty."""
    if not isinstance(segment, Mapping):
        return polygon_box(segment)
    x, y, width, height = _api().toBbox(dict(segment)).tolist()
    return x, y, x + width, y + height


def to_coco(segment: Segment) -> Any:
    """A segment as JSON values."""
    if isinstance(segment, Mapping):
        return {"size": list(segment["size"]), "counts": segment["counts"].decode()}
    return [points.ravel().tolist() for points in segment]


def compressed(rle: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """An RLE whose `counts` are bytes, from one with bytes, a string or a list of runs."""
    counts, size = rle["counts"], [height, width]
    if isinstance(counts, list):
        return dict(_api().frPyObjects({"size": size, "counts": counts}, height, width))
    return {"size": size, "counts": counts.encode() if isinstance(counts, str) else counts}


def is_valid_rle(rle: Mapping[str, Any], height: int, width: int) -> bool:
    """Whether an RLE of any form is one of an image of this size.

    pycocotools does not check it: too short a code decodes to the content of free memory.
    """
    counts, size = rle.get("counts"), rle.get("size")
    if not isinstance(size, list) or size != [height, width]:
        return False
    if isinstance(counts, str):
        counts = counts.encode("latin1", "replace")
    runs = _runs(counts) if isinstance(counts, bytes) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        return False
    return sum(runs) == height * width


def _runs(counts: bytes) -> list[int] | None:
    """Run lengths of compressed `counts`; None if these are no code.

    Numbers are written in groups of five bits, lowest first, as characters from "0" on; 32 marks
    that another group follows, and 16 of the last group is the sign. From the fourth one on they
    are differences to the number two places before.
    """
    runs, number, shift = list[int](), 0, 0
    for character in counts:
        group = character - 48
        if not 0 <= group < 64:
            return None
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                number -= 1 << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return runs if shift == 0 else None


def clip_polygon(points: np.ndarray, height: float, width: float) -> np.ndarray:
    """The part of a polygon inside [0, width] x [0, height]; empty if there is none.

    Sutherland and Hodgman's algorithm: parts of a concave polygon stay connected by edges along the
    border, which enclose no area.

    Args:
      points: float64 [m, 2], (x, y).

    Returns:
      float64 [k, 2], with k = 0 or at least 3.
    """
    for axis, sign, bound in ((0, 1, 0.0), (0, -1, width), (1, 1, 0.0), (1, -1, height)):
        inside = sign * (points[:, axis] - bound)  # distances
        if (inside >= 0).all():
            continue
        following, after = np.roll(points, -1, axis=0), np.roll(inside, -1)
        crosses = (inside < 0) != (after < 0)
        share = inside / np.where(crosses, inside - after, 1)
        cut = points + share[:, None] * (following - points)
        cut[:, axis] = bound
        kept = np.stack([inside >= 0, crosses], axis=1).ravel()
        points = np.stack([points, cut], axis=1).reshape(-1, 2)[kept]
    return points if len(points) >= 3 else np.empty((0, 2))


def polygon_box(polygons: Sequence[np.ndarray]) -> tuple[float, float, float, float]:
    """The box (x0, y0, x1, y1) around polygons, at least one of which is not empty."""
    points = np.concatenate(polygons)
    (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x0, y0, x1, y1


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The box (x0, y0, x1, y1) around the pixels of a mask, bool [h, w]; zeros if it has none."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
