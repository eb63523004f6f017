"""Annotations with boxes and masks go through the pipeline together with their image."""

import numpy as np
import pytest

from mae_jax.data import Field, Record, eval_batches, train_batches
from mae_jax.data.on_device import OnDeviceLoader
from mae_jax.data.options import DataOptions
from mae_jax.data.sampler import EvalSampler, TrainSampler
from mae_jax.data.sources.base import Subset
from mae_jax.data.sources.build import with_cache
from mae_jax.data.sources.cache import OVERHEAD, Budget, Cached
from mae_jax.data.transforms import crop
from mae_jax.data.transforms.decode import pixels
from mae_jax.data.transforms.resize import resize
from mae_jax.distributed import sharding
from mae_jax.runtime.errors import UsageError
from tests.data.helpers import MemorySource, jpeg, picture

COUNT, SIZE, MAX_BOXES = 11, 16, 3  # images; side of the crops; boxes per image
VOID = 255


class BoxSource(MemorySource):
    """Images with up to MAX_BOXES boxes (x0, y0, x1, y1), their classes, and a mask."""

    def __init__(self, bad=()):
        rng = np.random.default_rng(0)
        images = [picture(i, 24 + i, 40 - i) for i in range(COUNT)]
        super().__init__([b"not an image" if i in bad else x for i, x in enumerate(images)])
        self.annotations = []
        for i, image in enumerate(images):
            height, width = image.shape[:2]
            corners = rng.uniform(0, 1, (i % (MAX_BOXES + 1), 2, 2)) * (width, height)
            self.annotations.append(
                {
                    "boxes": np.sort(corners, axis=1).reshape(-1, 4).astype(np.float32),
                    "classes": rng.integers(0, 80, i % (MAX_BOXES + 1)),
                    "mask": rng.integers(0, 5, (height, width), np.uint8),
                }
            )

    def read(self, indices):
        return [Record(self.data[i], self.annotations[i]) for i in indices]


class FlipAndCrop:
    """Flips and crops the image, the boxes and the mask alike."""

    fields = {
        "image": Field((SIZE, SIZE, 3), "uint8"),
        "boxes": Field((MAX_BOXES, 4), "float32"),
        "classes": Field((MAX_BOXES,), "int32", fill=-1),
        "mask": Field((SIZE, SIZE), "uint8", fill=VOID),
        "label": Field((), "int32", fill=-1),
    }
    num_draws = 3

    def __call__(self, image, annotation, draws):
        boxes, mask = annotation["boxes"], annotation["mask"]
        height, width = mask.shape
        if draws[0] < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
            boxes = np.stack(
                [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1
            )
        top, left = int(draws[1] * (height - SIZE + 1)), int(draws[2] * (width - SIZE + 1))
        boxes = np.clip(boxes - (left, top, left, top), 0, SIZE)
        padding = MAX_BOXES - len(boxes)
        return {
            "image": image[top : top + SIZE, left : left + SIZE],
            "boxes": np.pad(boxes, ((0, padding), (0, 0))),
            "classes": np.pad(annotation["classes"], (0, padding), constant_values=-1),
            "mask": mask[top : top + SIZE, left : left + SIZE],
            "label": len(boxes),
        }


def settings(**config):
    return {
        "data_config": {"workers": 2, **config},
        "image_size": (SIZE, SIZE),
        "channels": 3,
        "batch_size": 8,
    }


def train(source, steps, *, start_step=0, transform=None, hosts=1, **config):
    """Global batches, joined from all hosts."""
    iterators = [
        train_batches(
            source,
            **settings(**config),
            seed=5,
            start_step=start_step,
            transform=transform or FlipAndCrop(),
            process_index=host,
            process_count=hosts,
        )
        for host in range(hosts)
    ]
    joined = []
    for _ in range(steps):
        parts = [next(iterator) for iterator in iterators]
        joined.append({name: np.concatenate([x[name] for x in parts]) for name in parts[0]})
    for iterator in iterators:
        iterator.close()
    return joined


def expected_rows(source, step):
    """The rows of a training batch, computed pixel by pixel from the draws of the sampler."""
    plan = TrainSampler(COUNT, seed=5).plan(step, batch_size=8, rows=slice(0, 8), num_draws=3)
    for index, (flip, down, right) in zip(plan.wanted, plan.draws, strict=True):
        image, annotation = source.data[index], source.annotations[index]
        height, width = image.shape[:2]
        top, left = int(down * (height - SIZE + 1)), int(right * (width - SIZE + 1))
        y, x = np.arange(SIZE) + top, np.arange(SIZE) + left
        if flip < 0.5:
            x = width - 1 - x
        boxes = np.zeros((MAX_BOXES, 4), np.float32)
        for box, (x0, y0, x1, y1) in zip(boxes, annotation["boxes"], strict=False):
            x0, x1 = (width - x1, width - x0) if flip < 0.5 else (x0, x1)
            box[:] = np.clip([x0 - left, y0 - top, x1 - left, y1 - top], 0, SIZE)
        classes = [*annotation["classes"], *[-1] * MAX_BOXES][:MAX_BOXES]
        pixels, mask = image[np.ix_(y, x)], annotation["mask"][np.ix_(y, x)]
        yield {"image": pixels, "boxes": boxes, "classes": classes, "mask": mask, "index": index}


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def reference():
    return train(BoxSource(), 4)


def test_image_boxes_and_mask_are_flipped_and_cropped_together(reference):
    assert {name: (x.shape, x.dtype.name) for name, x in reference[0].items()} == {
        "image": ((8, SIZE, SIZE, 3), "uint8"),
        "boxes": ((8, MAX_BOXES, 4), "float32"),
        "classes": ((8, MAX_BOXES), "int32"),
        "mask": ((8, SIZE, SIZE), "uint8"),
        "label": ((8,), "int32"),
        "index": ((8,), "int64"),
    }
    source = BoxSource()
    for step, batch in enumerate(reference):
        for row, expected in enumerate(expected_rows(source, step)):
            for name, value in expected.items():
                np.testing.assert_allclose(batch[name][row], value, atol=1e-5, err_msg=name)


def test_they_depend_on_the_step_and_not_on_hosts_restarts_or_caches(reference):
    source = BoxSource()
    assert_equal(train(source, 2, start_step=2), reference[2:])
    assert_equal(train(source, 4, hosts=2, workers=3), reference)
    for kind in ("encoded", "decoded"):
        (cached,) = with_cache([source], {"cache": kind, "cache_gb": 0.1}, channels=3)
        assert_equal(train(cached, 4), reference)
        assert_equal(train(cached, 4), reference)
    assert_equal(train(Subset(source, np.arange(COUNT), part="all"), 4), reference)


def test_rows_without_an_example_have_the_fill_values():
    source = BoxSource(bad=[4])
    batches = eval_batches(source, **settings(max_bad_fraction=0.2), transform=FlipAndCrop())
    empty = batches.empty()
    first, second = batches
    invalid = {name: x[4:5] for name, x in first.items()}
    padding = {name: x[3:] for name, x in second.items()}
    for rows, number in ((invalid, 1), (padding, 5), (empty, 8)):
        for name, field in FlipAndCrop.fields.items():
            expected = np.full((number, *field.shape), field.fill, field.dtype)
            np.testing.assert_array_equal(rows[name], expected, strict=True)
        assert not rows["valid"].any()
    assert first["valid"].sum() == 7 and second["valid"].sum() == 3
    assert {name: x.dtype for name, x in empty.items()} == {
        name: x.dtype for name, x in first.items()
    }


def test_a_replacement_brings_its_own_annotation():
    (batch,) = train(BoxSource(bad=[4]), 1, max_bad_fraction=0.2)
    (whole,) = train(BoxSource(), 1)
    (row,) = np.flatnonzero(batch["index"] == 4)
    plan = TrainSampler(COUNT, seed=5).plan(0, batch_size=8, rows=slice(0, 8), num_draws=3)
    other = next(i for i in plan.candidates[row] if i != 4)
    source = BoxSource()
    expected = FlipAndCrop()(source.data[other], source.annotations[other], plan.draws[row])
    np.testing.assert_array_equal(batch["mask"][row], expected["mask"])
    np.testing.assert_array_equal(batch["image"][row], expected["image"])
    assert not np.array_equal(batch["mask"][row], whole["mask"][row])


def test_the_default_transform_takes_the_label_and_ignores_the_rest():
    source = BoxSource()
    (batch,) = eval_batches(source, **{**settings(), "batch_size": COUNT})
    assert batch.keys() == {"image", "label", "index", "valid"}
    assert (batch["label"] == -1).all()
    source.annotations[2] = {**source.annotations[2], "label": 7}
    (batch,) = eval_batches(source, **{**settings(), "batch_size": COUNT})
    assert batch["label"].tolist() == [-1, -1, 7] + [-1] * (COUNT - 3)


@pytest.mark.parametrize("train_view", [True, False])
def test_the_default_batches_are_the_views_that_the_sampler_draws(train_view):
    """Independent of the pipeline: decoding, crop and resize of each row, in order."""
    files = [jpeg(picture(i, 30 + 3 * i, 70 - 2 * i)) for i in range(COUNT)]
    source, options = MemorySource(files), DataOptions(resizer="pillow", workers=2)
    common = {**settings(), "data_config": options}
    if train_view:
        batch = next(train_batches(source, **common, seed=5))
        order = TrainSampler(COUNT, seed=5)
    else:
        batch = next(eval_batches(source, **common))
        order = EvalSampler(COUNT)
    plan = order.plan(0, batch_size=8, rows=slice(0, 8), num_draws=crop.NUM_DRAWS)
    for row, (index, draws) in enumerate(zip(plan.wanted, plan.draws, strict=True)):
        image = pixels(files[index], options, channels=3)
        view = crop.choose_view(
            *image.shape[:2], draws, options=options, target=(SIZE, SIZE), train=train_view
        )
        (top, left), (height, width) = view.start, view.size
        image = resize(image[top : top + height, left : left + width], view.full, exact=True)
        top, left = view.offset
        image = image[top : top + SIZE, left : left + SIZE]
        image = image[:, ::-1] if view.mirror else image
        np.testing.assert_array_equal(batch["image"][row], image)
        assert batch["label"][row] == batch["index"][row] == index


def test_the_cache_counts_the_arrays_of_annotations():
    source, budget = BoxSource(), Budget(2**20)
    cached = Cached(source, budget, change=lambda record: record)
    cached.read([3])
    annotation = source.annotations[3]
    arrays = source.data[3].nbytes + sum(array.nbytes for array in annotation.values())
    assert budget.used == arrays + OVERHEAD


class Changed(FlipAndCrop):
    """Returns something else than it declares."""

    def __init__(self, **changes):
        self.changes = changes

    def __call__(self, image, annotation, draws):
        return super().__call__(image, annotation, draws) | self.changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.zeros(4)}, r"'boxes' of shape \(4,\), but declares \(3, 4\)"),
        ({"label": 0.5}, "'label' as float64, but declares int32"),
        ({"weights": 0}, r"returned \['boxes', 'classes', 'image', 'label', 'mask', 'weights'\]"),
    ],
)
def test_values_that_are_not_as_declared_are_refused(changes, message):
    with pytest.raises(Exception, match=message):  # TensorFlow wraps the error
        train(BoxSource(), 1, transform=Changed(**changes))


def test_reserved_names_and_sets_on_devices_are_refused():
    transform = Changed()
    transform.fields = {**FlipAndCrop.fields, "index": Field((), "int32")}
    with pytest.raises(ValueError, match=r"\['index'\]"):
        train(BoxSource(), 1, transform=transform)
    loader = OnDeviceLoader(sharding.make_mesh(2, 2))
    for make, more in ((loader.train_batches, {"seed": 0}), (loader.eval_batches, {})):
        with pytest.raises(UsageError, match="--config.data.on_device=True works for images"):
            make(BoxSource(), **settings(), **more, transform=FlipAndCrop())
