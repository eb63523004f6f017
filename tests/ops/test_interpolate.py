"""Interpolation inside the forward pass against torch's, from recorded numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.ops import interpolate
from tests.parity import official


@pytest.fixture(scope="module")
def ref():
    return official.arrays("detection/a_window_attention.npz")


def close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [7, 5, 8, 1])
def test_relative_table_is_resized_linearly(ref, size):
    """P3: no antialiasing."""
    close(
        interpolate.relative_table(jnp.asarray(ref["relpos_table"]), size), ref[f"relpos_q{size}"]
    )


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (7, 11), (3, 2)])
def test_position_table_is_resized_bicubically(ref, grid):
    """P1: coefficient -0.75, no antialiasing."""
    out = interpolate.resize_positions(jnp.asarray(ref["abspos_table"]), (4, 4), grid)
    close(out, ref[f"abspos_{grid[0]}x{grid[1]}"])


def test_the_table_of_a_released_encoder(ref):
    table = jnp.asarray(ref["abspos14_table"])
    out = interpolate.resize_positions(table, (14, 14), (64, 64))
    close(out, ref["abspos14_64x64"])
    assert (
        np.abs(out - jax.image.resize(table[:, 1:].reshape(1, 14, 14, 1), out.shape, "cubic")).max()
        > 1e-2
    )


def test_dtype_is_kept():
    x = jnp.ones((3, 2), jnp.bfloat16)
    out = interpolate.resize_axis(x, 0, interpolate.linear_matrix(3, 5))
    assert out.shape == (5, 2) and out.dtype == jnp.bfloat16
