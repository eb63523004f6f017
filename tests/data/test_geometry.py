"""The rules for many crops at once are those for one, number for number."""

import numpy as np
import pytest

from mae_jax.data import geometry, transforms
from mae_jax.data.order import TrainOrder

SIZES = [(32, 32), (375, 500), (500, 333), (300, 37), (20, 300), (7, 5), (1, 1), (1, 900), (2, 3)]
RANGES = [
    ((0.2, 1.0), (3 / 4, 4 / 3)),
    ((0.08, 1.0), (3 / 4, 4 / 3)),
    ((1.0, 1.0), (3.0, 4.0)),  # rarely fits; of an image one pixel wide nothing would be left
]
DRAWS = 200  # of each size


def cases():
    """Sizes int32 [n, 2] and draws float64 [n, NUM_DRAWS]."""
    count = DRAWS * len(SIZES)
    order = TrainOrder(count, seed=3)
    plan = order.plan(0, batch_size=count, rows=slice(0, count), num_draws=geometry.NUM_DRAWS + 2)
    return np.tile(np.array(SIZES, np.int32), (DRAWS, 1)), plan.draws


@pytest.mark.parametrize("kind", ["crop", "crop_once"])
@pytest.mark.parametrize(("scale", "ratio"), RANGES)
def test_boxes_equal_the_host_s(kind, scale, ratio):
    sizes, draws = cases()
    rule = transforms.BOXES[kind]

    theirs = [
        rule(*size, numbers, scale=scale, ratio=ratio)
        for size, numbers in zip(sizes.tolist(), draws.tolist(), strict=True)
    ]
    ours = geometry.BOXES[kind](sizes, draws, scale=scale, ratio=ratio)
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("target", [(224, 224), (32, 32), (384, 384), (224, 448), (64, 24)])
def test_evaluation_views_equal_the_host_s(target):
    rng = np.random.default_rng(0)
    sizes = np.concatenate([np.array(SIZES), rng.integers(1, 700, (40, 2))]).astype(np.int32)
    view = geometry.eval_views(sizes, target)
    for i, (height, width) in enumerate(sizes):
        full = transforms.eval_size(int(height), int(width), target)
        gap = [round((a - b) / 2) for a, b in zip(full, target, strict=True)]
        np.testing.assert_array_equal(view.full[i], full)
        np.testing.assert_array_equal(view.offset[i], gap)
    assert (view.start == 0).all() and (view.size == sizes).all()


def test_a_box_is_resized_to_the_whole_view():
    view = geometry.crop_views(np.array([[1, 2, 30, 40]], np.int32), (16, 24))
    assert [part.tolist() for part in view] == [[[1, 2]], [[30, 40]], [[16, 24]], [[0, 0]]]
