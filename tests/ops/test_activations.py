"""The cheap backward passes are those of the ordinary functions."""

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
    assert activations.gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


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
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))
