"""Attention for short sequences, with a backward pass that recomputes the weights.

The automatic gradient keeps two or three [B, H, N, N] arrays per block until the backward pass; at
197 tokens they are larger than all other activations of the decoder together. This version keeps
only the log-sum-exp of each row (Dao et al., 2205.14135) and recomputes the weights from it.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v, with the softmax in float32.

    Args:
      q: queries [B, Q, H, d].
      k, v: keys and values [B, N, H, d].

    Returns:
      [B, Q, H, d] in the dtype of `q`.
    """
    return _forward(q, k, v)[0]


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """float32 [B, H, Q, N] of head-major q and k."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    return scores * q.shape[-1] ** -0.5


def _forward(q: jax.Array, k: jax.Array, v: jax.Array):
    q, k, v = (_swap_heads(x) for x in (q, k, v))
    scores = _scores(q, k)
    top = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    # Dividing after the product takes Q * d divisions instead of Q * N.
    out = _product("bhqk,bhkd->bhqd", weights, v) / total
    out = out.astype(q.dtype)
    return _swap_heads(out), (q, k, v, out, top + jnp.log(total))


def _backward(saved: tuple[jax.Array, ...], grad: jax.Array):
    q, k, v, out, log_total = saved
    grad = _swap_heads(grad)
    weights = jnp.exp(_scores(q, k) - log_total)
    d_v = _product("bhqk,bhqd->bhkd", weights, grad)
    # The row sum in the softmax gradient, sum(d_weights * weights), equals grad . out.
    row = (grad.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    d_weights = jnp.einsum("bhqd,bhkd->bhqk", grad, v, preferred_element_type=jnp.float32)
    d_scores = weights * (d_weights - row) * q.shape[-1] ** -0.5
    d_q = _product("bhqk,bhkd->bhqd", d_scores, k)
    d_k = _product("bhqk,bhqd->bhkd", d_scores, q)
    return tuple(_swap_heads(x.astype(q.dtype)) for x in (d_q, d_k, d_v))


attention.defvjp(_forward, _backward)


def _product(spec: str, weights: jax.Array, x: jax.Array) -> jax.Array:
    """Einsum of float32 weights, rounded to the dtype of `x`, with `x`; accumulates in float32."""
    return jnp.einsum(spec, weights.astype(x.dtype), x, preferred_element_type=jnp.float32)


def _swap_heads(x: jax.Array) -> jax.Array:
    """[B, N, H, d] <-> [B, H, N, d]."""
    return x.swapaxes(1, 2)
