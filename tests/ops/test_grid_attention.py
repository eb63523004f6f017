"""Attention on a grid in chunks equals plain attention, with bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.ops.grid_attention import decomposed_bias, grid_attention, table_bias

BATCH, SIZE, HEADS, DIM = 2, (5, 3), 2, 4


def inputs(table_shapes, dtype=jnp.float32):
    shapes = [(BATCH, *SIZE, HEADS, DIM)] * 3 + list(table_shapes)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


DECOMPOSED = [(9, DIM), (5, DIM)]
TABLE = [(9, 5, HEADS)]


def chunked(q, k, v, *tables, chunk):
    make = decomposed_bias if len(tables) == 2 else table_bias
    bias, rows = make(*tables, SIZE)
    return grid_attention(q, k, v, bias, rows, chunk)


def plain(q, k, v, *tables):
    """Logits by a loop over all pairs of positions, in NumPy."""
    places = list(np.ndindex(SIZE))
    out = np.zeros(q.shape)
    for y, x in places:
        scores = np.zeros((BATCH, HEADS, len(places)))
        for i, (ky, kx) in enumerate(places):
            row, column = y - ky + SIZE[0] - 1, x - kx + SIZE[1] - 1
            if len(tables) == 2:
                bias = q[:, y, x] @ (tables[0][row] + tables[1][column])
            else:
                bias = tables[0][row, column]
            scores[:, :, i] = (q[:, y, x] * k[:, ky, kx]).sum(-1) / DIM**0.5 + bias
        weights = np.exp(scores)
        weights /= weights.sum(-1, keepdims=True)
        out[:, y, x] = np.einsum("bhk,bkhd->bhd", weights, v.reshape(BATCH, -1, HEADS, DIM))
    return out


@pytest.mark.parametrize("shapes", [DECOMPOSED, TABLE], ids=["decomposed", "table"])
def test_values_match_a_plain_loop(shapes):
    """Two rows of three queries at a time: the fifth row is a chunk of its own."""
    args = inputs(shapes)
    expected = plain(*(np.asarray(x, np.float64) for x in args))
    ours = jax.jit(lambda *a: chunked(*a, chunk=6))(*args)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)


def test_bfloat16_has_a_softmax_in_float32():
    args = inputs(DECOMPOSED, jnp.bfloat16)
    ours = jax.jit(lambda *a: chunked(*a, chunk=15))(*args)
    assert ours.dtype == jnp.bfloat16
    expected = plain(*(np.asarray(x, np.float64) for x in args))
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=0, atol=2**-6)


def test_memory_is_that_of_one_chunk():
    """Forward and backward, 32 x 32 tokens: all weights of one array would be 8 MB."""
    size, heads, dim = (32, 32), 2, 8
    shape = (1, *size, heads, dim)

    def loss(q, k, v, rel_h, rel_w):
        bias, rows = decomposed_bias(rel_h, rel_w, size)
        return grid_attention(q, k, v, bias, rows, 64).sum()

    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [shape] * 3 + [(63, dim)] * 2]
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4))).lower(*arrays).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 2**20
