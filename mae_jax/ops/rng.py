"""PRNG keys as pure functions of (seed, stream, step); no PRNG state is stored.

A resumed run therefore draws exactly the same numbers as an uninterrupted one.
"""

import zlib

import jax


def stream_key(seed: int, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """Key of a named stream ("init", "train", "eval_mask", ...) at a step or example index."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)
