"""Windows of a map against detectron2, and the padding's place."""

import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.ops import windows
from tests.parity import official


@pytest.mark.parametrize("case", ["part", "part2"])
def test_partition_is_detectron2s(case):
    ref = official.arrays("detection/a_window_attention.npz")
    x = jnp.asarray(ref[f"{case}_x"])
    out = windows.partition(x, 4)
    np.testing.assert_array_equal(out, ref[f"{case}_windows"])
    size = (x.shape[1], x.shape[2])
    assert windows.padded_size(size, 4) == tuple(ref[f"{case}_padded_hw"])
    np.testing.assert_array_equal(windows.unpartition(out, size), x)


def test_each_axis_has_its_own_padding():
    """P2: 5 x 8 needs three more rows and no more columns."""
    x = jnp.ones((1, 5, 8, 1))
    out = np.asarray(windows.partition(x, 4))
    assert out.shape == (4, 4, 4, 1)
    np.testing.assert_array_equal(out[:2], 1)
    np.testing.assert_array_equal(out[2:, 0], 1)
    np.testing.assert_array_equal(out[2:, 1:], 0)
