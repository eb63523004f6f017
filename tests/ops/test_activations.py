"""The recomputing backward passes equal automatic gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.ops import activations


def test_gelu_and_its_gradient():
    x = jnp.linspace(-8, 8, 4001)
    plain = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731
    np.testing.assert_allclose(activations.gelu(x), plain(x), rtol=0, atol=1e-6)
    ours, theirs = (jax.vmap(jax.grad(f))(x) for f in (activations.gelu, plain))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)

    low = x.astype(jnp.bfloat16)
    exact = plain(low.astype(jnp.float32))
    assert activations.gelu(low).dtype == jnp.bfloat16
    difference = jnp.abs(activations.gelu(low).astype(jnp.float32) - exact)
    assert (difference <= 2**-8 * jnp.abs(exact) + 1e-6).all()  # rounded once, at the end


def test_layer_norm_and_its_gradients():
    keys = jax.random.split(jax.random.key(0), 4)
    x = 5 + 3 * jax.random.normal(keys[0], (4, 7, 33))
    scale, bias = jax.random.normal(keys[1], (33,)), jax.random.normal(keys[2], (33,))
    weights = jax.random.normal(keys[3], x.shape)

    def plain(x, scale, bias):
        unit = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return unit * scale + bias

    def ours(x, scale, bias):
        return activations.layer_norm(x, scale, bias, 1e-6)

    args = (x, scale, bias)
    np.testing.assert_allclose(ours(*args), plain(*args), rtol=0, atol=1e-5)
    results = [
        jax.jit(jax.grad(lambda *a, f=f: (f(*a) * weights).sum(), argnums=(0, 1, 2)))(*args)
        for f in (ours, plain)
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(b).max()))

    low = x.astype(jnp.bfloat16)
    value, backward = jax.vjp(lambda x: ours(x, scale, bias), low)
    exact = plain(low.astype(jnp.float32), scale, bias)
    assert value.dtype == jnp.bfloat16 and (value == exact.astype(jnp.bfloat16)).mean() > 0.99
    kept = [y for y in jax.tree.leaves(backward) if y.size == x.size]
    assert [y.dtype for y in kept] == [jnp.bfloat16]  # no float32 copy is kept
