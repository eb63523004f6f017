"""Keys depend only on seed, stream and step."""

import jax
import numpy as np

from mae_jax.ops import rng


def test_keys_differ_by_each_part_and_repeat():
    parts = [(0, "train", 0), (1, "train", 0), (0, "init", 0), (0, "train", 1)]
    keys = [jax.random.key_data(rng.stream_key(*p)) for p in parts]
    assert len({tuple(np.asarray(k)) for k in keys}) == 4
    np.testing.assert_array_equal(keys[0], jax.random.key_data(rng.stream_key(*parts[0])))
