"""The `coco` source: images with boxes and masks, annotated in COCO's JSON format.

Annotations are checked once, when the file is read: what cannot be used is left out, counted and
named in one line for each kind of problem. RLE masks stay encoded until a transform needs them.
"""

import collections
import hashlib
import itertools
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mae_jax.data import segments
from mae_jax.data.options import DataOptions
from mae_jax.data.sampler import fitting_holdout, holdout_split
from mae_jax.data.sources import splits
from mae_jax.data.sources.base import Annotation, Record, Source, Subset, coco_format
from mae_jax.data.sources.folder import FolderSource
from mae_jax.data.sources.listing import (
    Listing,
    cache_path,
    file_size,
    file_sizes,
    lacks_eval,
    restore_or_save,
)
from mae_jax.data.storage import is_away, patiently
from mae_jax.data.transforms.image_headers import MAX_VALUES
from mae_jax.runtime import text
from mae_jax.runtime.errors import DataMissing, UsageError, one_line, require

log = logging.getLogger(__name__)
_T = TypeVar("_T")

# Names of the annotation file in a folder: ours, and Roboflow's, which has the images next to it.
FILES = ("annotations.json", "_annotations.coco.json")
TRAIN = (*splits.TRAIN, "train2017")
HELD_OUT = (*splits.HELD_OUT, "val2017")
_NAMED = 5  # examples of each problem in the log
_TOLERANCE = 1.0  # pixels that boxes may reach out of their image without being reported
_FAR = 10  # sides of the image; a coordinate further out is a mistake, and slow to rasterize
_NUMBERS = frozenset([int, float])
_BAD_POLYGON = "of fewer than 6 or an odd number of coordinates, or far outside the image"


class Place(NamedTuple):
    """Where a set is: its annotation file, and the folders that may contain its images."""

    annotations: str
    images: tuple[str, ...]


class Image(NamedTuple):
    """An image as the annotation file describes it."""

    id: int
    path: str  # relative to the folder of the images
    height: int
    width: int


class Instance(NamedTuple):
    """An object, checked.

    Attributes:
      number: class, an index into the names of the classes.
      box: (x, y, width, height) in pixels, as in the file.
      area: in pixels, which decides whether the object is small, medium or large; None: unknown.
      crowd: whether it is a group of objects, which is not trained on.
      segment: its outline (`data.segments`).
    """

    number: int
    box: tuple[float, float, float, float]
    area: float | None
    crowd: bool
    segment: segments.Segment


class AnnotationFile(NamedTuple):
    """The usable content of an annotation file.

    Attributes:
      images: in the order of their ids.
      instances: of each image, by its id; in the order of the file.
      classes: names, in the order of the class numbers.
      category_ids: the id of each class in the file.
      digest: SHA-256 of the file.
    """

    images: list[Image]
    instances: Mapping[int, list[Instance]]
    classes: list[str]
    category_ids: list[int]
    digest: str


class CocoSource:
    """The images of an annotation file with their objects (a `DetectionSource`)."""

    def __init__(self, found: AnnotationFile, listing: Listing, *, base: str, name: str, part: str):
        """`listing` has the paths of some of the images of `found`, in the order of the source."""
        by_path = {image.path: image for image in found.images}
        self.name = name
        self.classes: list[str] | None = found.classes
        self.category_ids = found.category_ids
        self._images = [by_path[path] for path in listing.paths]
        self._instances = found.instances
        self._digest = found.digest
        self._files = FolderSource(listing, base=base, name=name, part=part)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        records = zip(self._files.read(indices), indices, strict=True)
        return [Record(record.data, self.annotation(int(index))) for record, index in records]

    def annotation(self, index: int) -> Annotation:
        """The annotation of a record; reads no image."""
        image = self._images[index]
        instances = self._instances.get(image.id, [])
        boxes = np.array([instance.box for instance in instances], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return {
            "boxes": boxes.astype(np.float32),
            "classes": np.array([instance.number for instance in instances], np.int32),
            "crowd": np.array([instance.crowd for instance in instances], bool),
            "segments": tuple(instance.segment for instance in instances),
            "size": (image.height, image.width),
            "image_id": image.id,
        }

    def num_objects(self) -> int:
        """Number of objects and crowds in all images."""
        return sum(len(self._instances.get(image.id, [])) for image in self._images)

    def has_objects(self) -> np.ndarray:
        """Which images have an object that is no crowd, bool [n]."""
        lists = (self._instances.get(image.id, []) for image in self._images)
        return np.array([any(not x.crowd for x in instances) for instances in lists], bool)

    def image_ids(self, indices: Sequence[int] | np.ndarray) -> list[int]:
        return [self._images[int(index)].id for index in indices]

    def coco_json(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        return coco_format(self, (self._entries(self._images[int(index)]) for index in indices))

    def _entries(self, image: Image) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        size = {"height": image.height, "width": image.width}
        objects = []
        for instance in self._instances.get(image.id, []):
            area = instance.area
            if area is None:
                area = segments.area(instance.segment, **size)
            objects.append(
                {
                    "category_id": self.category_ids[instance.number],
                    "bbox": list(instance.box),
                    "area": area,
                    "iscrowd": int(instance.crowd),
                    "segmentation": segments.to_coco(instance.segment),
                }
            )
        return {"id": image.id, "file_name": image.path, **size}, objects

    def describe(self, index: int) -> str:
        return self._files.describe(index)

    def fingerprint(self) -> dict[str, Any]:
        return self._files.fingerprint() | {"kind": "coco", "annotations": self._digest}


def make_coco_sources(
    options: DataOptions,
    *,
    workdir: str | None,
    resuming: bool = True,
    objects: bool = False,
    **_: Any,
) -> tuple[Source, Source | None]:
    """The training source and, if there is an evaluation split or a holdout, the evaluation source.

    Args:
      options: `config.data`.
      workdir: where listings are kept between starts; None keeps nothing.
      resuming: False: listings found there may belong to another host that is just starting.
      objects: whether to train on images with objects only, as detectron2 does; those with nothing
        but crowds count as without. Evaluation takes all images.

    Raises:
      UsageError: there is no such set, it is not in COCO's format, or nothing in it can be used.
    """
    discover = not (resuming and lacks_eval(workdir))
    train_at, eval_at = find(
        options.root, split=options.split, eval_split=options.eval_split, discover=discover
    )
    whole = _source(train_at, part="train", workdir=workdir)
    train: Source = whole
    evaluation: Source | None = None
    kept, part = np.arange(len(whole)), ""
    if eval_at is not None:
        evaluation = _source(eval_at, part="eval", workdir=workdir, classes=whole.classes)
    elif options.holdout:
        # Held out before images without objects are dropped, which belong to the evaluation.
        holdout = fitting_holdout(len(whole), options.holdout)
        kept, held_out = holdout_split(len(whole), holdout)
        evaluation = Subset(whole, held_out, part=f"{holdout} held out")
        train = Subset(whole, kept, part=f"all but {holdout} held out")
        part = f"all but {holdout} held out, "
    usable = kept[whole.has_objects()[kept]]
    if objects and len(usable) < len(kept):
        empty = len(kept) - len(usable)
        log.info("%s: not trained on: %s images without objects", whole.name, f"{empty:,}")
        require(len(usable) > 0, f"{whole.name} has no image with an object to train on")
        train = Subset(whole, usable, part=f"{part}with objects")
    return train, evaluation


def annotated_images(images: str, annotations: str, *, classes: list[str] | None) -> CocoSource:
    """The images of a folder that an annotation file describes, for tools.

    Args:
      images: the folder.
      annotations: a JSON file in COCO's format.
      classes: names to number the classes by, those of a model; None takes the file's own order.

    Raises:
      UsageError: as in `make_coco_sources`.
    """
    return patiently(
        lambda: _source(Place(annotations, (images,)), part="eval", workdir=None, classes=classes),
        what=annotations,
        limit=DataOptions.storage_wait,
        was_there=False,
    )


def find(
    root: str, *, split: str, eval_split: str, discover: bool = True
) -> tuple[Place, Place | None]:
    """The training set and, if there is one, the evaluation set.

    A set NAME is ROOT/NAME/annotations.json with its images in ROOT/NAME/images (or next to the
    file), or ROOT/annotations/instances_NAME.json with its images in ROOT/NAME, as in COCO 2017.
    ROOT/annotations.json with ROOT/images is a training set without a name.

    Args:
      root: the data folder.
      split: name of the training set; `train` also finds `train2017` and the like.
      eval_split: name of the evaluation set; "" searches for `val`, `val2017` and so on.
      discover: False does not search for an evaluation set.

    Raises:
      UsageError: there is no such set.
    """
    if not root:
        raise UsageError("--config.data.root is empty: name a folder with annotations.json")
    train = _first_place(root, (*TRAIN, "") if split == "train" else (split,))
    if train is None:
        wanted = [f"{root}/annotations.json"] if split in ("", "train") else []
        if split:
            wanted += [f"{root}/{split}/annotations.json"]
            wanted += [f"{root}/annotations/instances_{split}.json"]
        raise DataMissing(
            f"no annotations in COCO's format: looked for {', '.join(wanted)} (--config.data.root, "
            "--config.data.split)"
        )
    if eval_split:
        evaluation = _first_place(root, (eval_split,))
        if evaluation is None:
            raise DataMissing(
                f"--config.data.eval_split={eval_split}: no {root}/{eval_split}/annotations.json "
                f"and no {root}/annotations/instances_{eval_split}.json"
            )
        return train, evaluation
    others = [name for name in HELD_OUT if name != split]
    return train, _first_place(root, others) if discover else None


def _first_place(root: str, names: Iterable[str]) -> Place | None:
    """The set with the first possible name; raises OSError if the storage fails."""
    for name in names:
        folder = os.path.join(root, name) if name else root
        for file in FILES:
            path = os.path.join(folder, file)
            if file_size(path) is not None:
                return Place(path, (os.path.join(folder, "images"), folder))
        path = os.path.join(root, "annotations", f"instances_{name}.json")
        if file_size(path) is not None:
            return Place(path, (folder, os.path.join(root, "images", name)))
    return None


def _source(
    place: Place, *, part: str, workdir: str | None, classes: list[str] | None = None
) -> CocoSource:
    """Reads an annotation file and lists its images; the missing ones are logged and left out."""
    problems = _Problems(place.annotations)
    found = read_annotations(place.annotations, problems, classes=classes)
    paths = [image.path for image in found.images]
    base, sizes = _sizes(place, paths)
    missing = [path for path, size in zip(paths, sizes, strict=True) if size is None]
    if len(missing) == len(paths):
        raise DataMissing(
            f"none of the {len(paths):,} images of {place.annotations} is in "
            f"{' or '.join(place.images)}: {', '.join(map(text.quoted, missing[:3]))}"
        )
    for path in missing:
        problems.add("images that do not exist", path)
    problems.report()
    pairs = [(p, size) for p, size in zip(paths, sizes, strict=True) if size is not None]
    listing = Listing(
        [path for path, _ in pairs],
        np.array([size for _, size in pairs], np.int64),
        np.full(len(pairs), -1, np.int32),
        None,
    )
    # The annotations, not the folder, decide what belongs to the set.
    listing = restore_or_save(listing, cache_path(workdir, part), place=place.annotations)
    source = CocoSource(found, listing, base=base, name=place.annotations, part=part)
    log.info(
        "%s: %s images, %s objects of %d classes",
        *(place.annotations, f"{len(source):,}", f"{source.num_objects():,}", len(found.classes)),
    )
    return source


def _sizes(place: Place, paths: Sequence[str]) -> tuple[str, list[int | None]]:
    """The first folder that contains any of the images, and the bytes of each."""
    for base in place.images:
        sizes = file_sizes(os.path.join(base, path) for path in paths)
        if any(size is not None for size in sizes):
            return base, sizes
    return place.images[0], [None] * len(paths)


class _Problems:
    """Counts the parts of an annotation file that cannot be used, and logs a line for each kind."""

    def __init__(self, path: str):
        self._path = path
        self._found: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, kind: str, what: object, *, action: str = "left out") -> None:
        self._found[f"{kind}, {action}"].append(text.quoted(str(what)))

    def report(self) -> None:
        for kind, names in self._found.items():
            more = ", ..." if len(names) > _NAMED else ""
            shown = ", ".join(names[:_NAMED]) + more
            log.warning("%s: %s %s: %s", self._path, f"{len(names):,}", kind, shown)


def read_annotations(
    path: str, problems: _Problems, *, classes: list[str] | None = None
) -> AnnotationFile:
    """Reads and checks an annotation file.

    Args:
      path: a JSON file.
      problems: collects what cannot be used.
      classes: names to number the classes by; None numbers them in the order of their ids.

    Raises:
      UsageError: it is not in COCO's format, has no usable image, or has classes without a number.
      OSError: the storage fails.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        if is_away(error):
            raise
        raise DataMissing(f"{path} cannot be read: {error.strerror}") from error
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not in COCO's format: no JSON ({one_line(error)})") from error
    lists = ("images", "annotations", "categories")
    for key in lists:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise UsageError(
                f"{path} is not in COCO's format: it has no list {key!r} (it needs "
                f"{', '.join(lists)})"
            )
    categories = _categories(path, data["categories"])
    names, ids = _numbered(path, categories, classes)
    number_of = {name: number for number, name in enumerate(map(text.normalized, names))}
    numbers = {id: number_of[text.normalized(name)] for id, name in categories.items()}
    images = _images(data["images"], problems)
    if not images:
        problems.report()
        raise UsageError(f"{path} lists no image that can be used")
    return AnnotationFile(
        sorted(images.values()),
        _instances(data["annotations"], images, numbers, problems),
        names,
        ids,
        hashlib.sha256(content).hexdigest(),
    )


def _categories(path: str, entries: list[Any]) -> dict[int, str]:
    """Names of the categories by id, in the order of the ids; several may have one name."""
    by_id: dict[int, str] = {}
    for entry in entries:
        id = _integer(entry.get("id")) if isinstance(entry, dict) else None
        if id is None or not isinstance(entry.get("name"), (str, int)):
            raise UsageError(
                f"{path} is not in COCO's format: each category needs an integer id and a name"
            )
        if id in by_id:
            raise UsageError(f"{path} has two categories with the id {id}")
        by_id[id] = str(entry["name"])
    if not by_id:
        raise UsageError(f"{path} has no categories")
    return dict(sorted(by_id.items()))


def _numbered(
    path: str, categories: Mapping[int, str], classes: list[str] | None
) -> tuple[list[str], list[int]]:
    """Names and ids of the classes, in the order of their numbers.

    Categories with the same name, which Roboflow writes, are one class with the first id.
    """
    id_of: dict[str, int] = {}
    for id, name in categories.items():
        id_of.setdefault(text.normalized(name), id)
    if classes is None:
        return [categories[id] for id in id_of.values()], list(id_of.values())
    if extra := id_of.keys() - set(map(text.normalized, classes)):
        raise UsageError(
            f"{path} has categories that the training images or the model do not have: "
            f"{', '.join(sorted(extra)[:5])} (there: {', '.join(classes[:5])})"
        )
    # Classes that the file lacks get ids that it does not use.
    unused = itertools.count(max(categories) + 1)
    ids = [id_of.get(text.normalized(name)) for name in classes]
    return classes, [next(unused) if id is None else id for id in ids]


def _images(entries: list[Any], problems: _Problems) -> dict[int, Image]:
    """The usable images by id."""
    images: dict[int, Image] = {}
    paths: set[str] = set()
    for place, entry in enumerate(entries):
        image = _image(entry)
        if image is None:
            name = entry.get("file_name") if isinstance(entry, dict) else None
            kind = "images without an integer id, a file_name, a height and a width"
            problems.add(kind, name or f"number {place}")
        elif os.path.isabs(image.path) or ".." in image.path.split("/"):
            problems.add("images outside the folder of the images", image.path)
        elif image.id in images or image.path in paths:
            problems.add("images listed twice", f"{image.id} ({image.path})")
        else:
            images[image.id] = image
            paths.add(image.path)
    return images


def _image(entry: Any) -> Image | None:
    """An image; None if its entry is not complete."""
    if not isinstance(entry, dict):
        return None
    path = entry.get("file_name")
    id, height, width = (_integer(entry.get(key)) for key in ("id", "height", "width"))
    if not isinstance(path, str) or not path or "\0" in path:
        return None
    if id is None or not height or not width or min(height, width) < 1:
        return None
    if height * width > MAX_VALUES:
        return None
    return Image(id, path.replace("\\", "/"), height, width)


def _integer(value: Any) -> int | None:
    """An integer, also written as 3.0; None for anything else and for huge numbers."""
    whole = _is_number(value) and value == int(value) and abs(value) < 2**53
    return int(value) if whole else None


def _look_up(table: Mapping[int, _T], value: Any) -> _T | None:
    number = _integer(value)
    return None if number is None else table.get(number)


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return type(value) is int and abs(value) < 2**53  # exact in float64


def _instances(
    entries: list[Any],
    images: Mapping[int, Image],
    numbers: Mapping[int, int],
    problems: _Problems,
) -> Mapping[int, list[Instance]]:
    """The usable objects of each image, by its id.

    Args:
      entries: the annotations of the file.
      images: by id.
      numbers: class number of each category id.
      problems: collects what cannot be used.
    """
    found: dict[int, list[Instance]] = collections.defaultdict(list)
    ids: set[str] = set()
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            problems.add("annotations that are no objects of JSON", f"number {place}")
            continue
        id = entry.get("id")
        name = f"number {place}" if id is None else str(id)
        if name in ids:
            problems.add("annotations whose id occurs before", name)
            continue
        ids.add(name)
        image = _look_up(images, entry.get("image_id"))
        number = _look_up(numbers, entry.get("category_id"))
        if image is None:
            problems.add("annotations of an unknown image", name)
        elif number is None:
            problems.add("annotations of an unknown category", name)
        elif (instance := _instance(name, entry, image, number, problems)) is not None:
            found[image.id].append(instance)
    return dict(found)


def _instance(
    name: str, entry: Mapping[str, Any], image: Image, number: int, problems: _Problems
) -> Instance | None:
    """An object; None if it cannot be used."""
    given, area = entry.get("segmentation"), entry.get("area")
    segment: segments.Segment = []
    if isinstance(given, list) and given:
        far = _FAR * max(image.height, image.width)
        found = [_polygon(values, far) for values in given]
        segment = [points for points in found if points is not None]
        if not segment:
            problems.add(f"annotations with nothing but polygons {_BAD_POLYGON}", name)
            return None
        if len(segment) < len(given):
            problems.add(f"annotations with polygons {_BAD_POLYGON}", name, action="others kept")
    elif isinstance(given, Mapping) and given:
        if not segments.is_valid_rle(given, image.height, image.width):
            problems.add("annotations with a damaged RLE, or one of another size", name)
            return None
        segment = segments.compressed(given, image.height, image.width)
    box = _box(entry.get("bbox"), segment)
    if box is None or min(box[2:]) <= 0:
        problems.add("annotations whose box has no size", name)
        return None
    x0, y0, x1, y1 = box[0], box[1], box[0] + box[2], box[1] + box[3]
    outside = x0 >= image.width or y0 >= image.height or x1 <= 0 or y1 <= 0
    if outside or max(map(abs, box)) > _FAR * max(image.height, image.width):
        problems.add("annotations whose box is outside the image, or reaches far out of it", name)
        return None
    if min(x0, y0, image.width - x1, image.height - y1) < -_TOLERANCE:
        kind = "annotations whose box is partly outside the image"
        problems.add(kind, name, action="cut off at its border")
    if not segment:
        problems.add("annotations without a segmentation", name, action="their mask is their box")
        segment = [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])]
    known = float(area) if area is not None and _is_number(area) else None
    return Instance(number, box, known, bool(entry.get("iscrowd")), segment)


def _polygon(values: Any, far: int) -> np.ndarray | None:
    """float64 [m, 2]; None if these are no coordinates of a polygon."""
    if not isinstance(values, list) or len(values) < 6 or len(values) % 2:
        return None
    if not _NUMBERS.issuperset(map(type, values)):
        return None
    try:
        points = np.array(values, np.float64).reshape(-1, 2)
    except OverflowError:
        return None
    return points if np.abs(points).max() <= far else None  # False for NaN


def _box(given: Any, segment: segments.Segment) -> tuple[float, float, float, float] | None:
    """(x, y, width, height) as given, or around the segment; None if there is neither."""
    if isinstance(given, list) and len(given) == 4 and all(map(_is_number, given)):
        x, y, width, height = map(float, given)
        return x, y, width, height
    if given or not segment:
        return None
    x0, y0, x1, y1 = segments.box(segment)
    return x0, y0, x1 - x0, y1 - y0
