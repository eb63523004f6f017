"""Crops made by matrix products have TensorFlow's pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.data.transforms import resize
from mae_jax.ops.crop import axis_weights, bicubic, crop_and_resize
from mae_jax.runtime.tensorflow_cpu import tf

OUT = (24, 32)


def views(images, boxes, *, antialias, mirror=None, full=OUT, offset=(0, 0)):
    """Crops [B, *OUT, C] by boxes [B, 4] of top, left, height, width."""
    boxes = np.asarray(boxes, np.int32)
    same = [np.tile(np.asarray(pair, np.int32), (len(boxes), 1)) for pair in (full, offset)]
    mirror = np.zeros(len(boxes), bool) if mirror is None else np.asarray(mirror)
    make = jax.jit(crop_and_resize, static_argnames=("out", "antialias"))
    return np.asarray(
        make(images, boxes[:, :2], boxes[:, 2:], *same, mirror, out=OUT, antialias=antialias)
    )


def random_crops(count, side, seed=0):
    """Noise, the hardest case, and boxes of every size from one pixel to the whole image."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    size = rng.integers(1, side + 1, (count, 2))
    size[0], size[1], size[2] = 1, side, OUT
    start = (rng.random((count, 2)) * (side - size + 1)).astype(int)
    return images, np.concatenate([start, size], axis=1)


def tensorflow_s(image, size, *, antialias):
    """Resized by tf.image.resize; with antialiasing 8-bit columns are rounded before the rows."""

    def one(x, size):
        resized = tf.image.resize(x, size, "bicubic", antialias=antialias).numpy()
        return np.clip(np.floor(resized + 0.5), 0, 255) if image.dtype == np.uint8 else resized

    return one(one(image, (image.shape[0], size[1])) if antialias else image, size)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_crops_equal_tensorflow_s(antialias, dtype):
    images, boxes = random_crops(60, 90)
    images = images.astype(dtype)
    ours = views(images, boxes, antialias=antialias)
    assert ours.dtype == dtype
    for image, (top, left, h, w), view in zip(images, boxes, ours, strict=True):
        theirs = tensorflow_s(image[top : top + h, left : left + w], OUT, antialias=antialias)
        if dtype == "uint8":
            assert np.abs(view - theirs).max() <= 1
            assert (view == theirs).mean() > 0.995
        else:
            np.testing.assert_allclose(view, theirs, rtol=0, atol=2e-3)


@pytest.mark.skipif(not resize.SIMD, reason="Pillow does not always begin with the columns")
def test_crops_equal_those_of_the_host():
    images, boxes = random_crops(60, 90)
    ours = views(images, boxes, antialias=True)
    theirs = np.stack(
        [
            resize.resize(image[top : top + h, left : left + w], OUT)
            for image, (top, left, h, w) in zip(images, boxes, strict=True)
        ]
    )
    # The host's weights have few bits, and two roundings can add up.
    assert np.abs(ours.astype(int) - theirs).max() <= 2
    assert (ours == theirs).mean() > 0.98


def test_what_lies_outside_the_crop_does_not_matter():
    images, boxes = random_crops(20, 40)
    before = views(images, boxes, antialias=True)
    for image, (top, left, h, w) in zip(images, boxes, strict=True):
        inside = image[top : top + h, left : left + w].copy()
        image[...] = 255 - image
        image[top : top + h, left : left + w] = inside
    np.testing.assert_array_equal(views(images, boxes, antialias=True), before)


def test_a_mirrored_view_is_flipped():
    images, boxes = random_crops(6, 40)
    plain = views(images, boxes, antialias=True)
    mirrored = views(images, boxes, antialias=True, mirror=[True, False] * 3)
    np.testing.assert_array_equal(mirrored[::2], plain[::2, :, ::-1])
    np.testing.assert_array_equal(mirrored[1::2], plain[1::2])


def test_a_part_of_the_resized_image_is_cut_out_of_it():
    images, _ = random_crops(3, 90)
    whole = tensorflow_s(images[0], (40, 50), antialias=True)
    part = views(images[:1], [[0, 0, 90, 90]], antialias=True, full=(40, 50), offset=(5, 9))[0]
    assert np.abs(part.astype(int) - whole[5 : 5 + OUT[0], 9 : 9 + OUT[1]]).max() <= 1


def test_nothing_changes_where_nothing_is_resized():
    images, _ = random_crops(4, 40)
    boxes = [[i, 2 * i, *OUT] for i in range(4)]
    for antialias in (True, False):
        ours = views(images, boxes, antialias=antialias)
        for i in range(4):
            np.testing.assert_array_equal(ours[i], images[i, i : i + 24, 2 * i : 2 * i + 32])


def test_every_row_of_weights_sums_to_one():
    numbers = (jnp.array([v]) for v in (3, 50, 17, 0))
    weights = axis_weights(*numbers, out=17, length=60, antialias=True)
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-6)
    assert (weights[0, :, :3] == 0).all() and (weights[0, :, 53:] == 0).all()


def test_the_kernel_is_keys_cubic():
    x = jnp.array([0.0, 1.0, 2.0, 3.0, -0.5])
    np.testing.assert_allclose(bicubic(x), [1, 0, 0, 0, 0.5625], atol=1e-6)
