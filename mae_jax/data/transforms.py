"""Crop, resize and flip in TensorFlow, with torchvision's geometry and Pillow's pixels.

Importing this module imports TensorFlow: `pipeline` does so only when data is read.
"""

import math
import os
from collections.abc import Callable
from typing import Any

# Silences TensorFlow's start-up notes (warnings still show). Nothing here uses oneDNN.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

from mae_jax.data.geometry import FLIP, TRIES
from mae_jax.data.options import DataOptions

# JAX owns the accelerators; TensorFlow would otherwise claim all of a GPU's memory.
tf.config.set_visible_devices([], "GPU")

# Pillow's decoder; TensorFlow's own default differs by up to 17 of 255.
_JPEG = {"channels": 3, "dct_method": "INTEGER_ACCURATE", "fancy_upscaling": True}

Tensor = Any  # TensorFlow ships no usable types
Transform = Callable[[Tensor, Tensor, Tensor], Tensor]


def random_box(height: Tensor, width: Tensor, draws: Tensor, *, scale, ratio) -> Tensor:
    """torchvision's RandomResizedCrop box: int32 [top, left, height, width].

    Ten tries of area ~ U(scale) and log-uniform width / height, the first that fits wins; else the
    largest centred box within the ratio. All tries are drawn at once. (TensorFlow's own
    `sample_distorted_bounding_box` draws smaller areas: mean 0.459 for 0.494.)

    Args:
      height, width: int32 scalars, size of the image.
      draws: float64 [geometry.NUM_DRAWS], uniform in [0, 1).
      scale, ratio: (low, high) of the area share and of width / height.
    """
    h, w = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    area = h * w * (scale[0] + (scale[1] - scale[0]) * draws[:TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = tf.exp(low + (high - low) * draws[TRIES : 2 * TRIES])
    tall = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int32)
    wide = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int32)
    fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
    first = tf.argmax(fits, output_type=tf.int32)

    # No try fits: the whole image, cut to the nearest allowed ratio about its centre.
    most = tf.cast(tf.round(w / ratio[0]), tf.int32), tf.cast(tf.round(h * ratio[1]), tf.int32)
    full = tf.stack([tf.minimum(height, most[0]), tf.minimum(width, most[1])])
    full = tf.maximum(full, 1)
    centre = tf.stack([height, width]) - full

    size = tf.where(fits[first], tf.stack([tall[first], wide[first]]), full)
    room = tf.cast(tf.stack([height, width]) - size + 1, tf.float64)
    offset = tf.cast(draws[2 * TRIES : 2 * TRIES + 2] * room, tf.int32)
    return tf.concat([tf.where(fits[first], offset, centre // 2), size], axis=0)


def random_box_once(height: Tensor, width: Tensor, draws: Tensor, *, scale, ratio) -> Tensor:
    """Box of one draw of area and ratio, cut to the image: int32 [top, left, height, width].

    What the paper's linear probing uses, after BYOL; arguments as `random_box`, of whose draws it
    takes the first. Reference: `RandomResizedCrop` of facebookresearch/mae, util/crop.py.
    """
    h, w = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    area = h * w * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = tf.exp(low + (high - low) * draws[TRIES])
    sides = tf.cast(tf.round(tf.stack([tf.sqrt(area / aspect), tf.sqrt(area * aspect)])), tf.int32)
    size = tf.clip_by_value(sides, 1, tf.stack([height, width]))
    room = tf.cast(tf.stack([height, width]) - size + 1, tf.float64)
    offset = tf.cast(draws[2 * TRIES : 2 * TRIES + 2] * room, tf.int32)
    return tf.concat([offset, size], axis=0)


# `config.data.augment` -> how a training image is cropped.
BOXES = {"crop": random_box, "crop_once": random_box_once}


def eval_size(height: Tensor, width: Tensor, target: tuple[int, int]) -> Tensor:
    """Size int32 [2] to resize to before the centre crop, as MAE's evaluation transform.

    For a square target T the short side becomes int(T / crop), crop = 224/256 up to 224 pixels and
    1 above, and the long side keeps the shape, rounded down. For any other target (whose short
    side decides on the crop) the image just covers the target enlarged in the same way.

    Reference: `build_transform` of facebookresearch/mae, util/datasets.py.
    """
    crop = 224 / 256 if min(target) <= 224 else 1.0
    cover_h, cover_w = int(target[0] / crop), int(target[1] / crop)
    height, width = tf.cast(height, tf.int64), tf.cast(width, tf.int64)
    by_height = cover_h * width >= cover_w * height  # the height is what limits
    size = tf.where(
        by_height,
        tf.stack([tf.constant(cover_h, tf.int64), cover_h * width // height]),
        tf.stack([cover_w * height // width, tf.constant(cover_w, tf.int64)]),
    )
    return tf.cast(size, tf.int32)


def train_transform(options: DataOptions, *, image_size: tuple[int, int]) -> Transform:
    """Random resized crop and flip: (encoded, array, draws) -> image [H, W, C]."""
    scale, ratio = options.crop_scale, options.crop_ratio
    choose_box = BOXES[options.augment]

    def transform(encoded, array, draws):
        size = _size(encoded, array)
        box = choose_box(size[0], size[1], draws, scale=scale, ratio=ratio)
        crop = tf.cond(
            tf.strings.length(encoded) > 0,
            lambda: _cast(tf.image.decode_and_crop_jpeg(encoded, box, **_JPEG), options),
            lambda: array[box[0] : box[0] + box[2], box[1] : box[1] + box[3]],
        )
        image = resize(crop, image_size, options)
        if options.hflip:
            image = tf.cond(draws[FLIP] < 0.5, lambda: image[:, ::-1], lambda: image)
        return tf.ensure_shape(image, (*image_size, array.shape[-1]))

    return transform


def eval_transform(options: DataOptions, *, image_size: tuple[int, int]) -> Transform:
    """Resize and centre crop: (encoded, array, ignored) -> image [H, W, C]."""

    def transform(encoded, array, draws):
        del draws
        whole = tf.cond(
            tf.strings.length(encoded) > 0,
            lambda: _cast(tf.io.decode_jpeg(encoded, **_JPEG), options),
            lambda: array,
        )
        size = eval_size(tf.shape(whole)[0], tf.shape(whole)[1], image_size)
        image = resize(whole, size, options)
        # torchvision's CenterCrop: int(round(gap / 2)), where halves go to the even number.
        top_left = tf.cast(tf.round((size - image_size) / 2), tf.int32)
        image = tf.slice(image, [top_left[0], top_left[1], 0], [*image_size, -1])
        return tf.ensure_shape(image, (*image_size, array.shape[-1]))

    return transform


def _size(encoded, array):
    """Height and width, int32 [2], without decoding."""
    return tf.cond(
        tf.strings.length(encoded) > 0,
        lambda: tf.image.extract_jpeg_shape(encoded)[:2],
        lambda: tf.shape(array)[:2],
    )


def _cast(image, options: DataOptions):
    return tf.cast(image, options.dtype)


def resize(image, size, options: DataOptions):
    """Bicubic resize of [h, w, C] to `size`, in the dtype of the options."""
    image = _resize_rows(tf.transpose(image, [1, 0, 2]), size[1], options)
    image = _resize_rows(tf.transpose(image, [1, 0, 2]), size[0], options)
    if options.dtype == "uint8":  # rounds half up as Pillow does; bicubic overshoots at edges
        image = tf.cast(tf.clip_by_value(image + 0.5, 0, 255), tf.uint8)
    return image


def _resize_rows(image, rows, options: DataOptions):
    """Resizes the first axis of [n, m, C] only: float32 [rows, m, C].

    TensorFlow's kernel is slow along the second axis, where only C numbers lie side by side. Two
    passes along the first, with a whole row as "channels", give the same numbers in half the time.
    """
    n, m, channels = tf.unstack(tf.shape(image))
    flat = tf.reshape(image, [n, 1, m * channels])
    flat = tf.image.resize(flat, [rows, 1], "bicubic", antialias=options.resize_antialias)
    return tf.reshape(flat, [rows, m, channels])
