"""Random erasing with noise, like timm's `RandomErasing(mode="pixel")`, on device.

Reference: Zhong et al. (1708.04896).
"""

import math

import jax
import jax.numpy as jnp

TRIES = 10  # boxes drawn per image, until one fits
AREA = (0.02, 1 / 3)  # as a fraction of the image
LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))


def random_erasing(key: jax.Array, images: jax.Array, prob: float) -> jax.Array:
    """Fills a random box with standard normal noise in each image with probability `prob`.

    If none of `TRIES` random boxes is smaller than the image, the image is left unchanged.

    Args:
      key: PRNG key.
      images: normalized float [B, H, W, C].
      prob: probability for each image.

    Returns:
      [B, H, W, C] in the dtype of `images`.
    """
    batch, height, width = images.shape[:3]
    keys = jax.random.split(key, 5)

    def uniform(key: jax.Array, low: float, high: float) -> jax.Array:
        return jax.random.uniform(key, (batch, TRIES), minval=low, maxval=high)

    area = uniform(keys[0], *AREA) * (height * width)
    aspect = jnp.exp(uniform(keys[1], *LOG_ASPECT))
    tall = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    wide = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (tall < height) & (wide < width)
    chosen = jnp.argmax(fits, axis=1)[:, None]
    tall, wide = (jnp.take_along_axis(side, chosen, 1)[:, 0] for side in (tall, wide))
    place = jax.random.uniform(keys[2], (batch, 2))
    # Includes the last position; rounding must not go beyond it.
    top = jnp.minimum((place[:, 0] * (height - tall + 1)).astype(jnp.int32), height - tall)
    left = jnp.minimum((place[:, 1] * (width - wide + 1)).astype(jnp.int32), width - wide)
    erase = (jax.random.uniform(keys[3], (batch,)) < prob) & fits.any(axis=1)
    y, x = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    top, left, tall, wide = (v[:, None, None] for v in (top, left, tall, wide))
    inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
    inside &= erase[:, None, None]
    noise = jax.random.normal(keys[4], images.shape, images.dtype)
    return jnp.where(inside[..., None], noise, images)
