"""Attention with recomputed weights equals plain attention, with less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.ops.attention import attention


def plain(q, k, v):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)


def inputs(queries=9, tokens=9, heads=3, dim=8, scale=1.0):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (queries, tokens, tokens)
    return tuple(
        scale * jax.random.normal(key, (2, n, heads, dim))
        for key, n in zip(keys, shapes, strict=True)
    )


def gradients(function, args):
    weights = jax.random.normal(jax.random.key(1), args[0].shape)
    return jax.jit(jax.grad(lambda *a: (function(*a) * weights).sum(), argnums=(0, 1, 2)))(*args)


@pytest.mark.parametrize("queries, scale", [(9, 1.0), (4, 1.0), (1, 1.0), (9, 30.0)])
def test_values_and_gradients(queries, scale):
    args = inputs(queries, scale=scale)  # at 30, exponentials would overflow
    np.testing.assert_allclose(attention(*args), plain(*args), rtol=0, atol=2e-6 * scale)
    for ours, theirs in zip(gradients(attention, args), gradients(plain, args), strict=True):
        assert jnp.isfinite(ours).all()
        tolerance = max(1e-5 * float(np.abs(theirs).max()), 1e-6 * scale**2)  # both round
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def test_bfloat16_is_as_good_as_bfloat16_can_be():
    args = inputs(tokens=50, queries=50)
    low = tuple(x.astype(jnp.bfloat16) for x in args)
    exact = plain(*(x.astype(jnp.float32) for x in low))
    ours = attention(*low)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=0, atol=2**-8)
    wide = tuple(x.astype(jnp.float32) for x in low)
    for a, b in zip(gradients(attention, low), gradients(plain, wide), strict=True):
        assert a.dtype == jnp.bfloat16
        bound = 2**-6 * float(np.abs(b).max())
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=bound)


def test_nothing_as_large_as_the_weights_is_kept():
    q, k, v = inputs(tokens=64, queries=64, dim=8)
    _, backward = jax.vjp(attention, q, k, v)
    assert max(x.size for x in jax.tree.leaves(backward)) == q.size  # the weights: 8 times that
