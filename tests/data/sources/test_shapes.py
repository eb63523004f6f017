"""The drawn data set: properties of a scene; only the outline determines its class."""

import numpy as np
import pytest

from mae_jax.data import segments
from mae_jax.data.sources import shapes_drawing
from mae_jax.data.sources.shapes import ShapesSource
from mae_jax.data.sources.shapes_drawing import CLASSES, Scene, draw
from mae_jax.runtime.errors import UsageError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """2,000 scenes of 32 x 32 pixels."""
    return [draw(index, image_size=(32, 32)) for index in range(2000)]


@pytest.fixture(scope="module")
def labels(scenes: list[Scene]) -> np.ndarray:
    return np.array([scene.label for scene in scenes])


def _same(one: Scene, other: Scene) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _keep(monkeypatch: pytest.MonkeyPatch, *, behind: bool, front: bool) -> None:
    """Removes the objects behind the main one, or in front of it, from every scene."""
    plan = shapes_drawing._plan

    def kept(*args):
        ground, main, *others = plan(*args)
        return ground, main, others[0] * behind, others[1] * front

    monkeypatch.setattr(shapes_drawing, "_plan", kept)


def _halved(image: np.ndarray) -> np.ndarray:
    """The mean of every 2 x 2 pixels of [H, W, ...]."""
    height, width = image.shape[:2]
    return image.reshape(height // 2, 2, width // 2, 2, *image.shape[2:]).mean(axis=(1, 3))


def _variance_ratio(values: np.ndarray, labels: np.ndarray) -> float:
    """One-way analysis of variance: about 1 if the values [n] are independent of the labels [n]."""
    groups = [values[labels == label] for label in range(len(CLASSES))]
    between = sum(len(group) * (group.mean() - values.mean()) ** 2 for group in groups)
    within = sum(((group - group.mean()) ** 2).sum() for group in groups)
    return between / (len(groups) - 1) / (within / (len(values) - len(groups)))


def _outline_facts(mask: np.ndarray) -> np.ndarray:
    """Features of a mask that are invariant to moving, rotating and scaling, float64 [13]."""
    points = np.argwhere(mask)
    y, x = (points - points.mean(axis=0)).T
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    radius /= np.quantile(radius, 0.98)
    rings = np.bincount(np.minimum(radius * 6, 5).astype(int), minlength=6) / len(points)
    waves = [abs((np.exp(1j * order * angle) * radius**2).mean()) for order in range(1, 7)]
    return np.array([*rings, *waves, (radius**2).mean()])


def _linear_accuracy(features: np.ndarray, labels: np.ndarray, decay: float) -> float:
    """Ridge regression on one-hot labels: accuracy on the last fifth after fitting the rest."""
    train = len(labels) * 4 // 5
    features = (features - features[:train].mean(axis=0)) / (features[:train].std(axis=0) + 1e-6)
    fit, targets = features[:train], np.eye(len(CLASSES))[labels[:train]] - 1 / len(CLASSES)
    weights = np.linalg.solve(fit.T @ fit + decay * np.eye(fit.shape[1]), fit.T @ targets)
    return np.mean((features[train:] @ weights).argmax(axis=1) == labels[train:])


def test_a_scene_depends_only_on_seed_and_index() -> None:
    first = draw(7, image_size=(32, 32), seed=3)
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    draw(8, image_size=(32, 32), seed=3)
    assert _same(first, draw(7, image_size=(32, 32), seed=3))
    assert np.array_equal(state, np.random.get_state()[1])
    assert not np.array_equal(first.image, draw(7, image_size=(32, 32), seed=4).image)


def test_no_two_indices_share_an_image(scenes: list[Scene]) -> None:
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)
    assert len({scene.image[0, 0].tobytes() for scene in scenes}) > 1500  # not even a color


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_types_and_shapes(channels: int) -> None:
    for index in range(20):
        scene = draw(index, image_size=(24, 40), channels=channels)
        count = len(scene.classes)
        assert scene.image.shape == (24, 40, channels) and scene.image.dtype == np.uint8
        assert scene.boxes.shape == (count, 4) and scene.boxes.dtype == np.float32
        assert scene.classes.dtype == np.int32
        assert scene.masks.shape == (count, 24, 40) and scene.masks.dtype == bool


def test_channel_counts_show_one_image() -> None:
    for index in range(20):
        color = draw(index, image_size=(32, 32))
        gray = draw(index, image_size=(32, 32), channels=1)
        five = draw(index, image_size=(32, 32), channels=5)
        assert _same(color._replace(image=gray.image), gray)
        luminance = color.image @ np.array([0.299, 0.587, 0.114])
        assert np.abs(luminance - gray.image[..., 0]).max() <= 1.5
        # The five hues lie evenly on the color circle, so their mean is that of the primaries.
        assert np.abs(five.image.mean(axis=2) - color.image.mean(axis=2)).max() <= 1.5
        assert five.image.std(axis=2).max() > 5


def test_a_plain_scene_shows_one_large_object(scenes: list[Scene]) -> None:
    plain = [draw(index, image_size=(32, 32), plain=True) for index in range(300)]
    assert all(len(scene.classes) == 1 for scene in plain)
    assert {scene.label for scene in plain} == set(range(len(CLASSES)))
    share, cluttered = (np.mean([s.masks[0].mean() for s in many]) for many in (plain, scenes))
    assert share > 1.4 * cluttered


def test_sizes_show_one_scene() -> None:
    errors = []
    for index in range(40):
        large = draw(index, image_size=(128, 128))
        small = draw(index, image_size=(64, 64))
        errors.append(np.abs(_halved(large.image) - small.image).mean())
        assert large.label == small.label and np.array_equal(large.classes, small.classes)
        assert np.abs(large.boxes / 2 - small.boxes).max() <= 2
        assert ((_halved(large.masks[0]) > 0.5) ^ small.masks[0]).mean() < 0.02
    assert max(errors) < 1.2 and np.mean(errors) < 0.5  # of 255 levels


def test_a_longer_side_spreads_the_objects_but_keeps_their_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _keep(monkeypatch, behind=False, front=False)
    centers = []
    for index in range(60):
        square, wide, tall = (
            draw(index, image_size=size) for size in ((48, 48), (48, 96), (96, 48))
        )
        for other in (wide, tall):
            assert other.label == square.label
            assert abs(other.masks.sum() - square.masks.sum()) <= 0.12 * square.masks.sum()
        centers.append([wide.boxes[0, 1::2].mean() / 96, tall.boxes[0, ::2].mean() / 96])
    assert np.all(np.min(centers, axis=0) < 0.25) and np.all(np.max(centers, axis=0) > 0.75)


def test_labels_boxes_and_masks_agree(scenes: list[Scene]) -> None:
    counts = set()
    for scene in scenes[:500]:
        assert scene.classes[0] == scene.label
        assert np.all(scene.classes[1:] != scene.label)
        assert scene.masks.sum(axis=0).max() == 1  # no pixel has two owners
        for box, mask in zip(scene.boxes, scene.masks, strict=True):
            rows, columns = np.nonzero(mask)
            extent = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
            assert box.tolist() == extent
        counts.add(len(scene.classes))
    assert {2, 3, 4} <= counts <= {1, 2, 3, 4, 5}


def test_masks_end_where_the_image_changes() -> None:
    edges, rest = [], []
    for index in range(100):
        scene = draw(index, image_size=(64, 64))
        steps = np.abs(np.diff(scene.image.astype(float), axis=1)).max(axis=2)
        ends = np.diff(scene.masks, axis=2).any(axis=0)
        edges.append(steps[ends].mean())
        rest.append(steps[~ends].mean())
    assert np.mean(edges) > 8 * np.mean(rest)
    assert min(edges) > 30  # of 255 levels: no object blends into its surroundings


def test_most_of_the_main_object_is_visible(
    scenes: list[Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    _keep(monkeypatch, behind=False, front=False)
    alone = [draw(index, image_size=(32, 32)).masks[0] for index in range(len(scenes))]
    pairs = zip(scenes, alone, strict=True)
    shares = np.array([scene.masks[0].sum() / mask.sum() for scene, mask in pairs])
    assert shares.min() >= 0.6
    assert shares.max() == 1 and np.mean(shares < 0.95) > 0.3  # and many are partly covered
    # The frame does not cut it: a side of a cut figure would lie along the image's edge.
    assert not any(mask[0].sum() > 6 or mask[:, 0].sum() > 6 for mask in alone)


def test_objects_behind_do_not_cover_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def masks() -> list[np.ndarray]:
        return [draw(index, image_size=(32, 32)).masks[0] for index in range(200)]

    with monkeypatch.context() as patch:
        _keep(patch, behind=False, front=False)
        alone = masks()
    with monkeypatch.context() as patch:
        _keep(patch, behind=True, front=False)
        before = masks()
    assert all(np.array_equal(one, other) for one, other in zip(alone, before, strict=True))


def test_classes_are_balanced(labels: np.ndarray) -> None:
    share = np.bincount(labels, minlength=len(CLASSES)) / len(labels) * len(CLASSES)
    assert len(CLASSES) >= 10 and len(share) == len(CLASSES)
    assert share.min() > 0.75 and share.max() < 1.25


def test_color_and_position_are_independent_of_the_class(
    scenes: list[Scene], labels: np.ndarray
) -> None:
    facts = [
        [
            *scene.image[scene.masks[0]].mean(axis=0),
            *scene.image[~scene.masks.any(axis=0)].mean(axis=0),
            *np.argwhere(scene.masks[0]).mean(axis=0),
        ]
        for scene in scenes
    ]
    for values in np.array(facts).T:
        assert _variance_ratio(values, labels) < 2.5
    strongest = np.array(facts)[:, :3].argmax(axis=1)
    assert np.bincount(strongest, minlength=3).min() > len(scenes) / 4  # and hues vary


def test_pixels_are_no_linear_clue_to_the_class(scenes: list[Scene], labels: np.ndarray) -> None:
    pixels = np.array([scene.image[::2, ::2].ravel() for scene in scenes]) / 255.0
    assert _linear_accuracy(pixels, labels, decay=1000.0) < 0.2


def test_outlines_determine_the_class() -> None:
    some = [draw(index, image_size=(48, 48)) for index in range(1000)]
    facts = np.array([_outline_facts(scene.masks[0]) for scene in some])
    found = np.array([scene.label for scene in some])
    assert _linear_accuracy(facts, found, decay=0.1) > 0.8


def test_the_smallest_images_still_show_the_main_object() -> None:
    for index in range(300):
        scene = draw(index, image_size=(8, 8))
        assert scene.classes[0] == scene.label
        assert scene.masks.any(axis=(1, 2)).all()  # the main one's too; the rest are left out
        assert len(scene.classes) == len(scene.boxes) == len(scene.masks)


@pytest.mark.parametrize(("size", "channels"), [((7, 64), 3), ((64, 0), 3), ((64, 64), 0)])
def test_images_too_small_to_draw_are_refused(size: tuple[int, int], channels: int) -> None:
    with pytest.raises(UsageError, match="shapes: "):
        draw(0, image_size=size, channels=channels)


@pytest.mark.parametrize("scenes", ["cluttered", "plain"])
def test_objects_are_the_visible_pixels_in_scenes_and_in_coco_format(scenes: str) -> None:
    options = {"image_size": (24, 32), "channels": 3, "scenes": scenes}
    source = ShapesSource("train", start=5, count=9, objects=True, **options)
    record = source.read([3])[0]
    scene = draw(8, image_size=(30, 40), plain=scenes == "plain")  # 1.25 times the size
    found = record.annotation
    np.testing.assert_array_equal(record.data, scene.image)
    np.testing.assert_array_equal(found["classes"], scene.classes, strict=True)
    assert found["boxes"].dtype == np.float32 and not found["crowd"].any()
    assert (found["size"], found["image_id"]) == ((30, 40), 4)
    masks = [segments.decode(rle) for rle in found["segments"]]
    np.testing.assert_array_equal(masks, scene.masks)
    for mask, box in zip(masks, found["boxes"], strict=True):
        assert segments.mask_box(mask) == tuple(box.tolist())
    content = source.coco_json([3, 0])
    assert [image["id"] for image in content["images"]] == [4, 1] == source.image_ids([3, 0])
    assert [x["id"] for x in content["annotations"]] == [*range(1, 1 + len(content["annotations"]))]
    mine = [x for x in content["annotations"] if x["image_id"] == 4]
    assert [source.category_ids.index(x["category_id"]) for x in mine] == scene.classes.tolist()
    corners = np.array([x["bbox"] for x in mine])
    corners[:, 2:] += corners[:, :2]
    np.testing.assert_array_equal(corners, found["boxes"])
    assert [x["area"] for x in mine] == scene.masks.sum(axis=(1, 2)).tolist()
    plain = ShapesSource("train", start=5, count=9, **options)
    assert plain.read([3])[0].annotation == {"label": scene.label}
    assert plain.fingerprint() == source.fingerprint()
