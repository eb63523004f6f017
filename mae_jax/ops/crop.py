"""Batched crop and bicubic resize that reproduces the pixels of TensorFlow and Pillow.

Each direction is a matrix product with weights computed per image, zero outside its crop, so that
images and crops of any size share one compiled program.
"""

import jax
import jax.numpy as jnp

TABLE = 1024  # entries of TensorFlow's weight table for resizing without antialiasing


def bicubic(x: jax.Array) -> jax.Array:
    """Keys' cubic kernel with a = -0.5, zero at distances of 2 and more (IEEE TASSP 29, 1981)."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def axis_weights(
    start: jax.Array,
    size: jax.Array,
    full: jax.Array,
    offset: jax.Array,
    *,
    out: int,
    length: int,
    antialias: bool,
    mirror: jax.Array | None = None,
) -> jax.Array:
    """Resampling weights along one axis: crop, resize, then take a window.

    Args:
      start, size: int32 [B], the crop; pixels outside it have no influence.
      full: int32 [B], number of pixels that the crop is resized to.
      offset: int32 [B], first pixel of the window in the resized crop.
      out: pixels of the window.
      length: pixels of the input axis.
      antialias: widen the kernel when an image shrinks, as Pillow and `tf.image.resize` do.
        Otherwise use TensorFlow's table of weights, at multiples of 1 / TABLE.
      mirror: bool [B], reverse the window.

    Returns:
      float32 [B, out, length]; every row sums to 1.

    Reference: ScaleAndTranslate and ResizeBicubic (half-pixel centers) of TensorFlow's kernels.
    """
    target = jnp.arange(out)[None]
    if mirror is not None:
        target = jnp.where(mirror[:, None], out - 1 - target, target)
    shrink = size.astype(jnp.float32) / full.astype(jnp.float32)
    at = (offset[:, None] + target + 0.5) * shrink[:, None] - 0.5  # [B, out] from the crop's start
    if antialias:
        width = jnp.maximum(shrink, 1.0)[:, None, None]
    else:
        width = 1.0
        at = jnp.floor(at) + jnp.round((at - jnp.floor(at)) * TABLE) / TABLE
    pixel = jnp.arange(length)[None] - start[:, None]  # [B, length] from the crop's start
    weights = bicubic((pixel[:, None] - at[:, :, None]) / width)
    inside = (pixel >= 0) & (pixel < size[:, None])
    weights = jnp.where(inside[:, None], weights, 0.0)
    return weights / weights.sum(axis=2, keepdims=True)


def crop_and_resize(
    images: jax.Array,
    start: jax.Array,
    size: jax.Array,
    full: jax.Array,
    offset: jax.Array,
    mirror: jax.Array,
    *,
    out: tuple[int, int],
    antialias: bool,
) -> jax.Array:
    """Crops and resizes a batch, with one view per image.

    Args:
      images: [B, H, W, C] uint8 or float32; pixels outside the crops may have any finite value.
      start, size, full, offset: int32 [B, 2], for rows and columns; see `axis_weights`.
      mirror: bool [B], flip horizontally.
      out: (height, width) of the views.
      antialias: see `axis_weights`.

    Returns:
      [B, *out, C] in the dtype of `images`. uint8 is rounded half up and clipped; with antialiasing
      this happens after each direction, columns first, as in `data.transforms.resize`.
    """
    rows, columns = (
        axis_weights(
            *(array[:, axis] for array in (start, size, full, offset)),
            out=out[axis],
            length=images.shape[1 + axis],
            antialias=antialias,
            mirror=mirror if axis else None,
        )
        for axis in (0, 1)
    )
    # By default, accelerators multiply with 8 or 11 bits, too few for 8-bit pixels.
    exact = jax.lax.Precision.HIGHEST
    x = images.astype(jnp.float32)
    x = jnp.einsum("bvw,bhwc->bhvc", columns, x, precision=exact)
    if antialias and images.dtype == jnp.uint8:
        x = _rounded(x)
    x = jnp.einsum("buh,bhvc->buvc", rows, x, precision=exact)
    return _rounded(x).astype(jnp.uint8) if images.dtype == jnp.uint8 else x


def _rounded(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)
