"""Annotation files in COCO's format: what is read, what is left out, and where they are."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from mae_jax.data import eval_batches, segments
from mae_jax.data.options import DataOptions
from mae_jax.data.sources.base import unwrapped
from mae_jax.data.sources.build import make_sources
from mae_jax.data.sources.coco import annotated_images, find, make_coco_sources
from mae_jax.data.transforms.scale_jitter import ScaleJitter
from mae_jax.runtime.errors import DataMissing, StorageUnavailable, UsageError
from tests.data.helpers import encode, jpeg, picture

HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 90, "name": "tie"}]
SQUARE = [2, 3, 12, 3, 12, 13, 2, 13]
RLE = {"size": [HEIGHT, WIDTH], "counts": [40, 10, 10, 10, 530]}


def image(number, **changes):
    """An entry of an image whose id is 10 * number."""
    entry = {"id": 10 * number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH}
    return entry | changes


def thing(number, image_id=10, **changes):
    """An annotation: a square of 10 x 10 pixels."""
    entry = {
        "id": number,
        "image_id": image_id,
        "category_id": 7,
        "iscrowd": 0,
        "area": 100,
        "bbox": [2, 3, 10, 10],
        "segmentation": [SQUARE],
    } | changes
    return {key: value for key, value in entry.items() if value is not ...}


def write_set(folder, images, annotations, *, categories=CATEGORIES, inside="images", present=None):
    """Writes annotations.json, and a JPEG for every image (in `present`); returns the root."""
    present = present if present is not None else [entry["file_name"] for entry in images]
    (folder / inside).mkdir(parents=True, exist_ok=True)
    for name in present:
        (folder / inside / name).write_bytes(jpeg(picture(len(name), HEIGHT, WIDTH)))
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def sources(root, workdir=None, objects=True, **config):
    return make_sources(
        {"source": "coco", "root": str(root), **config},
        image_size=(8, 8),
        channels=3,
        workdir=str(workdir) if workdir else None,
        objects=objects,
    )


def annotation_of(root, index=0, **config):
    (record,) = sources(root, **config)[0].read([index])
    return record.annotation


def test_records_have_boxes_classes_crowds_and_outlines(tmp_path):
    root = write_set(
        tmp_path,
        [image(2), image(1)],
        [
            thing(5, category_id=90, bbox=[2.5, 3, 9.25, 10]),
            thing(1, category_id=2, segmentation=RLE, iscrowd=1),
            thing(3, image_id=20, segmentation=[SQUARE, [0, 0, 4, 0, 2, 3]]),
        ],
    )
    train, evaluation = sources(root)
    assert evaluation is None and len(train) == 2
    assert train.classes == ["cat", "dog", "tie"] and train.category_ids == [2, 7, 90]
    assert train.image_ids([0, 1]) == [10, 20]  # in the order of the ids
    first, second = train.read([0, 1])
    assert isinstance(first.data, bytes) and train.describe(0) == str(root / "images" / "1.jpg")
    found = first.annotation
    np.testing.assert_array_equal(
        found["boxes"], np.array([[2.5, 3, 11.75, 13], [2, 3, 12, 13]], np.float32), strict=True
    )
    np.testing.assert_array_equal(found["classes"], np.array([2, 0], np.int32), strict=True)
    assert found["crowd"].tolist() == [False, True]
    assert (found["size"], found["image_id"]) == ((HEIGHT, WIDTH), 10)
    (polygon,), rle = found["segments"]
    np.testing.assert_array_equal(polygon, np.reshape(SQUARE, (4, 2)).astype(float), strict=True)
    assert segments.decode(rle).sum() == 20
    assert [len(parts) for parts in second.annotation["segments"]] == [2]


def test_an_image_without_objects_is_evaluated_but_not_trained_on(tmp_path, caplog):
    images = [image(number) for number in range(1, 5)]
    objects = [thing(1), thing(2, image_id=20, iscrowd=1, segmentation=RLE), thing(3, image_id=40)]
    for split in ("train", "val"):
        write_set(tmp_path / split, images, objects)
    with caplog.at_level(logging.INFO):
        train, evaluation = found = sources(tmp_path)
    assert found.holdout == 0
    assert train.fingerprint()["part"] == "with objects"
    paths = [train.describe(index) for index in range(len(train))]
    assert [path[-5:] for path in paths] == ["1.jpg", "4.jpg"]
    assert evaluation.image_ids(range(len(evaluation))) == [10, 20, 30, 40]
    assert "not trained on: 2 images without objects" in caplog.text
    found = evaluation.read([2])[0].annotation
    assert found["boxes"].shape == (0, 4) and found["segments"] == ()
    # A task on images takes all of them.
    assert len(sources(tmp_path, objects=False)[0]) == 4
    write_set(tmp_path / "train", images, objects[1:2])
    with pytest.raises(UsageError, match="no image with an object to train on"):
        sources(tmp_path)


def test_held_out_images_may_be_without_objects(tmp_path):
    images = [image(number) for number in range(1, 21)]
    root = write_set(tmp_path, images, [thing(n, image_id=10 * n) for n in range(1, 11)])
    config = {"source": "coco", "root": str(root), "holdout": 8}
    found = make_sources(config, image_size=(8, 8), channels=3, workdir=None, objects=True)
    assert found.holdout == len(found.eval) == 8
    held_out, inner = unwrapped(found.eval, range(8))
    ids = set(held_out.image_ids(inner))
    assert any(id > 100 for id in ids)
    trained, inner = unwrapped(found.train, range(len(found.train)))
    assert set(trained.image_ids(inner)) == {10 * n for n in range(1, 11)} - ids
    again = make_sources(config, image_size=(8, 8), channels=3, workdir=None, objects=False)
    assert len(again.train) == 12 and again.holdout == 8


BAD = [
    ({"id": 1}, "annotations whose id occurs before, left out: 1"),
    ({"image_id": 99}, "annotations of an unknown image, left out: 9"),
    ({"image_id": None}, "annotations of an unknown image, left out: 9"),
    ({"image_id": [10]}, "annotations of an unknown image, left out: 9"),
    ({"category_id": 3}, "annotations of an unknown category, left out: 9"),
    ({"category_id": ...}, "annotations of an unknown category, left out: 9"),
    ({"bbox": [2, 3, 0, 10]}, "annotations whose box has no size, left out: 9"),
    ({"bbox": [2, 3, 10, -1]}, "annotations whose box has no size, left out: 9"),
    ({"bbox": [2, 3, 10]}, "annotations whose box has no size, left out: 9"),
    ({"bbox": [2, 3, 10, float("nan")]}, "annotations whose box has no size, left out: 9"),
    ({"bbox": ["2", 3, 10, 10]}, "annotations whose box has no size, left out: 9"),
    ({"bbox": [30, 3, 9, 9]}, "annotations whose box is outside the image, or reaches far out of"),
    ({"bbox": [2, 3, 1e308, 9]}, "annotations whose box is outside the image, or reaches far out"),
    ({"bbox": [-9, 3, 9, 9]}, "annotations whose box is outside the image, or reaches far out of"),
    ({"bbox": [2, 20, 9, 9]}, "annotations whose box is outside the image, or reaches far out of"),
    ({"segmentation": [[1, 2, 3, 4]]}, "annotations with nothing but polygons of fewer than 6"),
    ({"segmentation": [SQUARE[:7]]}, "annotations with nothing but polygons of fewer than 6"),
    ({"segmentation": SQUARE}, "annotations with nothing but polygons of fewer than 6"),
    ({"segmentation": [[*SQUARE[:7], "x"]]}, "annotations with nothing but polygons of fewer"),
    ({"segmentation": [[*SQUARE[:7], 10**400]]}, "annotations with nothing but polygons of fewer"),
    ({"segmentation": [[1e9, 3, 12, 3, 12, 13]]}, "annotations with nothing but polygons of"),
    ({"segmentation": {"counts": [1, 2]}}, "annotations with a damaged RLE"),
    ({"segmentation": {"size": [20, 30], "counts": "abc"}}, "annotations with a damaged RLE"),
    ({"segmentation": {"size": [30, 20], "counts": [600]}}, "annotations with a damaged RLE"),
]


@pytest.mark.parametrize(("changes", "line"), BAD)
def test_a_bad_annotation_is_left_out_and_named(tmp_path, caplog, changes, line):
    root = write_set(tmp_path, [image(1)], [thing(1), thing(9, **changes)])
    annotation = annotation_of(root)
    assert len(annotation["boxes"]) == len(annotation["segments"]) == 1
    (message,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert message.startswith(f"{root / 'annotations.json'}: 1 {line}")


def test_what_is_used_in_part_is_named_too(tmp_path, caplog):
    many = [thing(n, bbox=[25, 3, 10, 10]) for n in range(11, 18)]
    root = write_set(
        tmp_path,
        [image(1)],
        [
            thing(1, segmentation=[[1, 2, 3, 4], SQUARE]),
            thing(2, segmentation=...),
            thing(3, segmentation=[], bbox=[4, 5, 6, 7]),
            thing(4, bbox=..., segmentation=RLE),
            thing(None, bbox=[-0.5, 0, 31, 20]),  # rounded: no reason to report it
            thing(None),
            *many,
        ],
    )
    found = annotation_of(root)
    assert len(found["boxes"]) == 13
    np.testing.assert_array_equal(found["segments"][0][0], np.reshape(SQUARE, (4, 2)))
    np.testing.assert_array_equal(found["segments"][2][0], [[4, 5], [10, 5], [10, 12], [4, 12]])
    assert found["boxes"][3].tolist() == [2, 0, 4, 10]  # of the RLE: columns 2 and 3
    warnings = [r.getMessage().split(": ", 1)[1] for r in caplog.records if r.levelno > 20]
    assert warnings == [
        "1 annotations with polygons of fewer than 6 or an odd number of coordinates, or far "
        "outside the image, others kept: 1",
        "2 annotations without a segmentation, their mask is their box: 2, 3",
        "7 annotations whose box is partly outside the image, cut off at its border: 11, 12, 13, "
        "14, 15, ...",
    ]


def test_bad_images_are_left_out_and_named(tmp_path, caplog):
    images = [
        image(1),
        image(2, height=0),
        image(3, width=...),
        image(4, id="40"),
        image(5, file_name="../5.jpg"),
        image(6, file_name="/6.jpg"),
        image(7, id=10),
        image(8, file_name="1.jpg"),
        image(9),
        {"license": 3},
        "10.jpg",
        image(11, file_name="a\nb.jpg"),
        image(12, height=10**6, width=10**6),
    ]
    images = [
        {k: v for k, v in x.items() if v is not ...} if isinstance(x, dict) else x for x in images
    ]
    root = write_set(tmp_path, images, [thing(1)], present=["1.jpg"])
    train, _ = sources(root)
    assert train.image_ids(range(len(train))) == [10]
    warnings = [r.getMessage().split(": ", 1)[1] for r in caplog.records if r.levelno > 20]
    assert warnings == [
        "6 images without an integer id, a file_name, a height and a width, left out: 2.jpg, "
        "3.jpg, 4.jpg, number 9, number 10, ...",
        "2 images outside the folder of the images, left out: ../5.jpg, /6.jpg",
        "2 images listed twice, left out: 10 (7.jpg), 80 (1.jpg)",
        "2 images that do not exist, left out: 9.jpg, 'a\\nb.jpg'",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        (b"\xff\xd8\xff", "no JSON"),
        ("[]", "no list 'images' (it needs images, annotations, categories)"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [], "annotations": {}}', "no list 'annotations'"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        (
            '{"images": [], "annotations": [], "categories": [1]}',
            "category needs an integer id",
        ),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
            "lists no image that can be used",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, '
            '{"id": 1, "name": "b"}]}',
            "has two categories with the id 1",
        ),
    ],
)
def test_a_file_that_is_not_coco_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "annotations.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as error:
        sources(tmp_path)
    text = str(error.value)
    assert text.startswith(f"{path} ") and message in text and "\n" not in text and len(text) < 400


def test_places(tmp_path):
    def places(**names):
        train, evaluation = find(str(tmp_path), **{"split": "train", "eval_split": "", **names})
        return tuple(
            place and place.annotations.removeprefix(f"{tmp_path}/")
            for place in (train, evaluation)
        )

    def touch(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")

    for name, split in (("train", "train"), ("x", "x")):
        expected = f"{split}/annotations.json, {tmp_path}/annotations/instances_{split}.json"
        with pytest.raises(DataMissing, match=expected):
            places(split=name)
    with pytest.raises(UsageError, match="data.root is empty"):
        find("", split="train", eval_split="")
    touch("annotations.json")
    assert places() == places(split="") == ("annotations.json", None)
    touch("annotations/instances_val2017.json")
    assert places() == ("annotations.json", "annotations/instances_val2017.json")
    assert places(discover=False) == ("annotations.json", None)
    touch("annotations/instances_train2017.json")
    assert places() == (
        "annotations/instances_train2017.json",
        "annotations/instances_val2017.json",
    )
    touch("valid/_annotations.coco.json")  # as Roboflow exports
    touch("train/annotations.json")
    assert places() == ("train/annotations.json", "valid/_annotations.coco.json")
    assert places(split="train2017", eval_split="train") == (
        "annotations/instances_train2017.json",
        "train/annotations.json",
    )
    assert places(split="valid") == (
        "valid/_annotations.coco.json",
        "annotations/instances_val2017.json",
    )
    with pytest.raises(DataMissing, match="eval_split=test: no .*/test/annotations.json"):
        places(eval_split="test")


@pytest.mark.parametrize("folder", ["images", "."])
def test_images_lie_in_a_folder_or_next_to_the_file(tmp_path, folder):
    root = write_set(tmp_path, [image(1)], [thing(1)], inside=folder)
    assert annotation_of(root)["image_id"] == 10


def test_coco_2017_has_its_own_layout(tmp_path):
    for split in ("train2017", "val2017"):
        write_set(tmp_path / split, [image(1)], [thing(1)], inside=".")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / split / "annotations.json").rename(
            tmp_path / "annotations" / f"instances_{split}.json"
        )
    train, evaluation = sources(tmp_path)
    assert train.describe(0) == str(tmp_path / "train2017" / "1.jpg")
    assert evaluation.describe(0) == str(tmp_path / "val2017" / "1.jpg")
    files = tmp_path / "val2017", tmp_path / "annotations" / "instances_val2017.json"
    alone = annotated_images(*map(str, files), classes=None)
    assert alone.describe(0) == evaluation.describe(0)


def test_classes_are_numbered_by_the_training_set(tmp_path):
    write_set(tmp_path / "train", [image(1)], [thing(1)])
    others = [{"id": 1, "name": "tie"}, {"id": 4, "name": "dog"}]
    write_set(tmp_path / "val", [image(1)], [thing(1, category_id=4)], categories=others)
    _, evaluation = sources(tmp_path)
    assert evaluation.classes == ["cat", "dog", "tie"]
    assert evaluation.category_ids == [5, 4, 1]  # 5 is not used by the file
    assert evaluation.read([0])[0].annotation["classes"].tolist() == [1]
    assert evaluation.coco_json([0])["annotations"][0]["category_id"] == 4
    others = [*others, {"id": 5, "name": "cow"}]
    write_set(tmp_path / "val", [image(1)], [thing(1, category_id=4)], categories=others)
    with pytest.raises(UsageError, match="has categories that the training images .* cow"):
        sources(tmp_path)


def test_categories_of_one_name_are_one_class(tmp_path):
    """Roboflow writes a category 0 above the others, often with the name of one of them."""
    categories = [{"id": 0, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 1, "name": "dog"}]
    things = [thing(n, category_id=n) for n in range(3)]
    train, _ = sources(write_set(tmp_path, [image(1)], things, categories=categories))
    assert (train.classes, train.category_ids) == (["dog", "cat"], [0, 2])
    assert train.annotation(0)["classes"].tolist() == [0, 0, 1]
    assert [x["category_id"] for x in train.coco_json([0])["annotations"]] == [0, 0, 2]


def test_coco_json_is_what_was_read_with_annotations_numbered_from_one(tmp_path):
    things = [
        thing(0, bbox=[2.3, 3.7, 9.1, 8.9], area=77.5, segmentation=[SQUARE]),
        thing("b", segmentation=RLE, iscrowd=1, area=...),
        thing(7, segmentation=[SQUARE], area=float("nan")),
        thing(3, image_id=20),
    ]
    root = write_set(tmp_path, [image(1), image(2), image(3)], things)
    train, _ = sources(root, objects=False)
    found = train.coco_json([2, 0])
    assert [entry["id"] for entry in found["images"]] == [30, 10]
    assert found["categories"] == sorted(CATEGORIES, key=lambda entry: entry["id"])
    first, second, third = found["annotations"]
    assert first == things[0] | {"id": 1}
    assert (second["id"], second["iscrowd"], second["area"]) == (2, 1, 20)
    assert segments.decode(segments.compressed(second["segmentation"], HEIGHT, WIDTH)).sum() == 20
    assert (third["id"], third["area"]) == (3, 100)
    assert json.loads(json.dumps(found)) == found


def test_photos_are_annotated_as_they_are_turned(tmp_path, caplog):
    """EXIF says that the stored pixels [30, 20] are an image of [20, 30] on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    root = write_set(tmp_path, [image(1)], [thing(1)])
    stored = Image.fromarray(picture(0, WIDTH, HEIGHT))
    (root / "images" / "1.jpg").write_bytes(encode(stored, "JPEG", exif=exif))
    view = ScaleJitter({}, image_size=(32, 32), train=False)

    def valid(**config):
        train, _ = sources(root)
        settings = {"data_config": {"workers": 1, "max_bad_fraction": 1.0, **config}}
        batches = eval_batches(
            train, **settings, image_size=(32, 32), channels=3, batch_size=1, transform=view
        )
        return next(batches)["valid"].tolist()

    assert valid() == [True]
    assert valid(exif_transpose=False) == [False]
    assert "30 x 20 pixels, but its annotation says 20 x 30: was it annotated" in caplog.text


def test_the_set_of_a_run_does_not_change(tmp_path):
    root, workdir = tmp_path / "data", tmp_path / "run"
    write_set(root, [image(1), image(2)], [thing(1), thing(2, image_id=20)])
    train, _ = sources(root, workdir)
    before = train.fingerprint()
    assert sources(root, workdir)[0].fingerprint() == before
    # New images are not used; and other annotations show in the metadata.
    write_set(root, [image(n) for n in (1, 2, 3)], [thing(1), thing(2, image_id=20)])
    train, _ = sources(root, workdir)
    assert len(train) == 2
    assert {**train.fingerprint(), "annotations": ""} == {**before, "annotations": ""}
    assert train.fingerprint()["annotations"] != before["annotations"]
    # Evaluation images do not appear either.
    write_set(root / "val", [image(1)], [thing(1)])
    assert sources(root, workdir)[1] is None
    write_set(root, [image(1)], [thing(1)])
    with pytest.raises(UsageError, match="not those this run started with: 1 missing"):
        sources(root, workdir)


def test_images_that_are_all_missing_are_waited_for_once_they_were_there(tmp_path):
    root = write_set(tmp_path, [image(1)], [thing(1)], present=[])
    with pytest.raises(DataMissing, match=r"none of the 1 images .* 1\.jpg"):
        sources(root)
    with pytest.raises(StorageUnavailable, match="none of the 1 images"):
        make_sources(
            {"source": "coco", "root": str(root), "storage_wait": 0.0},
            image_size=(8, 8),
            channels=3,
            workdir=None,
            was_there=True,
        )


def test_sources_without_boxes_are_refused(image_folder):
    with pytest.raises(UsageError, match="folder has no boxes and masks: use coco or shapes"):
        make_sources(
            {"source": "folder", "root": str(image_folder)},
            image_size=(8, 8),
            channels=3,
            workdir=None,
            objects=True,
        )


def test_caches_count_the_outlines(tmp_path):
    root = write_set(tmp_path, [image(1)], [thing(1), thing(2, segmentation=RLE)])
    plain, _ = sources(root)
    cached, _ = sources(root, cache="encoded", cache_gb=1.0)
    inner, indices = unwrapped(cached, [0])
    assert inner.image_ids(indices) == plain.image_ids([0])
    record = plain.read([0])[0]
    (first,), rle = record.annotation["segments"]
    counted = cached.read([0])[0]
    np.testing.assert_array_equal(counted.annotation["segments"][0][0], first)
    arrays = [record.annotation[key] for key in ("boxes", "classes", "crowd")] + [first]
    expected = len(record.data) + sum(x.nbytes for x in arrays) + len(rle["counts"])
    assert cached._budget.used == expected + 400


def test_a_run_that_starts_ignores_listings_of_others(tmp_path):
    root, workdir = tmp_path / "data", tmp_path / "run"
    write_set(root, [image(1)], [thing(1)])
    sources(root, workdir)
    write_set(root / "val", [image(1)], [thing(1)])
    options = DataOptions(source="coco", root=str(root))
    _, evaluation = make_coco_sources(options, workdir=str(workdir), resuming=False)
    assert evaluation is not None
