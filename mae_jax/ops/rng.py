"""Random keys as pure functions of (seed, stream, step); nothing random is ever stored.

A resumed run therefore draws exactly what an uninterrupted one would have drawn.
"""

import zlib

import jax


def stream_key(seed: int, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """Key of one named stream ("init", "train", "eval_mask", ...) at one step or example index."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)
