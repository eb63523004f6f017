"""Crop and bicubic resize of many images at once, with the pixels of TensorFlow and Pillow.

Both directions are a matrix product with weights made for each image, zero outside its crop, so
that images of any size and crops of any size share one program.
"""

import jax
import jax.numpy as jnp

TABLE = 1024  # positions of TensorFlow's table of weights without antialiasing


def bicubic(x: jax.Array) -> jax.Array:
    """Keys' cubic kernel with a = -0.5, zero from distance 2 on (IEEE TASSP 29, 1981)."""
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
    """How much each pixel of an axis counts in each pixel of the view of it.

    Args:
      start, size: int32 [B], the pixels that are used; what lies beside them does not exist.
      full: int32 [B], number of pixels that they are resized to.
      offset: int32 [B], the first one of those that is wanted.
      out: how many are wanted.
      length: pixels of the axis.
      antialias: widen the kernel where an image shrinks, as Pillow and `tf.image.resize` do.
        Without, weights are those of TensorFlow's table, at multiples of 1 / TABLE.
      mirror: bool [B], the view is turned round.

    Returns:
      float32 [B, out, length]; every row sums to 1.

    Reference: ScaleAndTranslate and ResizeBicubic (half-pixel centres) of TensorFlow's kernels.
    """
    wanted = jnp.arange(out)[None]
    if mirror is not None:
        wanted = jnp.where(mirror[:, None], out - 1 - wanted, wanted)
    shrink = size.astype(jnp.float32) / full.astype(jnp.float32)
    at = (offset[:, None] + wanted + 0.5) * shrink[:, None] - 0.5  # [B, out] from the crop's start
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
    """Views of images, one of each.

    Args:
      images: [B, H, W, C] uint8 or float32; what lies outside the crops may be anything finite.
      start, size, full, offset: int32 [B, 2], of rows and columns; see `axis_weights`.
      mirror: bool [B], left and right change places.
      out: (height, width) of the views.
      antialias: see `axis_weights`.

    Returns:
      [B, *out, C] of the type of `images`; uint8 is rounded half up and cut to its range, with
      antialiasing after each direction, columns first, as `data.resize` does.
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
    # Accelerators would multiply with 8 or 11 bits, which shows in pixels of 8 bits.
    exact = jax.lax.Precision.HIGHEST
    x = images.astype(jnp.float32)
    x = jnp.einsum("bvw,bhwc->bhvc", columns, x, precision=exact)
    if antialias and images.dtype == jnp.uint8:
        x = _rounded(x)
    x = jnp.einsum("buh,bhvc->buvc", rows, x, precision=exact)
    return _rounded(x).astype(jnp.uint8) if images.dtype == jnp.uint8 else x


def _rounded(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)
