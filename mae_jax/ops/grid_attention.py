"""Attention on a grid of tokens with a bias that depends on relative positions.

At 64 x 64 tokens the logits of one head are 64 MB in float32. They are computed for a few rows of
queries at a time, and again in the backward pass, so that nothing of this size is stored.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mae_jax.ops.interpolate import relative_table

# Bias of one row of queries [B, W, heads, d], given that row's tables: broadcasts to
# [B, heads, W, H, W], the last two axes being the keys.
RowBias = Callable[[jax.Array, Any], jax.Array]


def grid_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: RowBias, tables: Any, query_chunk: int
) -> jax.Array:
    """softmax(q k^T / sqrt(d) + bias) v, with the softmax in float32.

    Args:
      q, k, v: [B, H, W, heads, d].
      bias: see `RowBias`.
      tables: arrays with one entry for each of the H rows; an entry is passed to `bias`.
      query_chunk: most queries whose logits exist at once (but at least one row), per example.

    Returns:
      [B, H, W, heads, d] in the dtype of `q`.
    """
    batch, height, width, heads, dim = q.shape
    keys, values = (x.reshape(batch, height * width, heads, dim) for x in (k, v))

    @jax.checkpoint
    def attend(inputs: tuple[jax.Array, Any]) -> jax.Array:
        row, table = inputs
        scores = jnp.einsum("bqhd,bkhd->bhqk", row, keys, preferred_element_type=jnp.float32)
        scores = scores.reshape(batch, heads, width, height, width) * dim**-0.5
        scores = (scores + bias(row, table)).reshape(batch, heads, width, height * width)
        weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, values, preferred_element_type=jnp.float32)
        return out.astype(row.dtype)

    rows = max(query_chunk // width, 1)
    inputs = (jnp.moveaxis(q, 1, 0), tables)
    if rows < height:
        out = jax.lax.map(attend, inputs, batch_size=rows)
    else:  # no loop: compiles faster
        out = jax.vmap(attend)(inputs)
    return jnp.moveaxis(out, 0, 1)


def decomposed_bias(
    rel_h: jax.Array, rel_w: jax.Array, size: tuple[int, int]
) -> tuple[RowBias, jax.Array]:
    """q . R_h + q . R_w, the same for all heads; q is not scaled (Li et al., 2203.16527, 3).

    Args:
      rel_h, rel_w: [2 * L - 1, d], resized if L is not H or W.
      size: (H, W) of the grid.

    Returns:
      (bias, tables) for `grid_attention`.
    """
    columns = relative_table(rel_w, size[1])

    def bias(row: jax.Array, table: jax.Array) -> jax.Array:
        wide = {"preferred_element_type": jnp.float32}
        by_row = jnp.einsum("bqhd,yd->bhqy", row, table.astype(row.dtype), **wide)
        by_column = jnp.einsum("bqhd,qxd->bhqx", row, columns.astype(row.dtype), **wide)
        return by_row[..., :, None] + by_column[..., None, :]

    return bias, relative_table(rel_h, size[0])


def table_bias(table: jax.Array, size: tuple[int, int]) -> tuple[RowBias, jax.Array]:
    """A bias for each offset and head, as in Swin and BEiT.

    Args:
      table: [2 * Lh - 1, 2 * Lw - 1, heads], resized if (Lh, Lw) is not (H, W).
      size: (H, W) of the grid.

    Returns:
      (bias, tables) for `grid_attention`.
    """

    def bias(row: jax.Array, table: jax.Array) -> jax.Array:
        del row
        by_offset = relative_table(table.swapaxes(0, 1), size[1])  # [W, W, H, heads]
        return by_offset.transpose(3, 0, 2, 1)

    return bias, relative_table(table, size[0])
