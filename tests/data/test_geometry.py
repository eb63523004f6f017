"""The NumPy rules for crops are the TensorFlow ones, number for number."""

import numpy as np
import pytest

from mae_jax.data import geometry, transforms
from mae_jax.data.order import TrainOrder

tf = transforms.tf

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
def test_boxes_equal_tensorflow_s(kind, scale, ratio):
    sizes, draws = cases()
    rule = transforms.BOXES[kind]

    @tf.function
    def theirs():
        return tf.map_fn(
            lambda row: rule(row[0][0], row[0][1], row[1], scale=scale, ratio=ratio),
            (tf.constant(sizes), tf.constant(draws)),
            fn_output_signature=tf.int32,
        )

    ours = geometry.BOXES[kind](sizes, draws, scale=scale, ratio=ratio)
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours, theirs().numpy())


@pytest.mark.parametrize("target", [(224, 224), (32, 32), (384, 384), (224, 448), (64, 24)])
def test_evaluation_views_equal_tensorflow_s(target):
    rng = np.random.default_rng(0)
    sizes = np.concatenate([np.array(SIZES), rng.integers(1, 700, (40, 2))]).astype(np.int32)
    view = geometry.eval_views(sizes, target)
    for i, (height, width) in enumerate(sizes):
        full = transforms.eval_size(tf.constant(height), tf.constant(width), target)
        gap = tf.cast(tf.round((full - target) / 2), tf.int32)
        np.testing.assert_array_equal(view.full[i], full.numpy())
        np.testing.assert_array_equal(view.offset[i], gap.numpy())
    assert (view.start == 0).all() and (view.size == sizes).all()


def test_a_box_is_resized_to_the_whole_view():
    view = geometry.crop_views(np.array([[1, 2, 30, 40]], np.int32), (16, 24))
    assert [part.tolist() for part in view] == [[[1, 2]], [[30, 40]], [[16, 24]], [[0, 0]]]
