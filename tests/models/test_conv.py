"""Convolutions and norms of pyramids and heads."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models import conv


def applied(module, x, seed=0):
    variables = module.init(jax.random.key(seed), x)
    return variables["params"], module.apply(variables, x)


def test_convolution_pads_with_zeros_and_adds_its_bias():
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)
    params, out = applied(conv.Conv(5, 3, jnp.float32), jnp.asarray(x))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in np.ndindex(3, 4):
        patch = padded[0, i : i + 3, j : j + 3]
        expected = np.einsum("abc,abco->o", patch, params["kernel"]) + params["bias"]
        np.testing.assert_allclose(out[0, i, j], expected, atol=1e-5)
    params, _ = applied(conv.Conv(5, 1, jnp.float32, bias=False), jnp.asarray(x))
    assert list(params) == ["kernel"] and params["kernel"].shape == (1, 1, 2, 5)


def test_transposed_convolution_does_not_flip_its_kernel():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    params, out = applied(conv.Deconv2x2(5, jnp.float32), jnp.asarray(x))
    assert out.shape == (2, 6, 8, 5)
    for a, b in np.ndindex(2, 2):
        expected = x @ params["kernel"][a, b] + params["bias"]
        np.testing.assert_allclose(out[:, a::2, b::2], expected, atol=1e-5)


@pytest.mark.parametrize(
    "module, bound",
    [
        (conv.Conv(400, 3, jnp.float32), 1 / math.sqrt(9 * 100)),
        (conv.Deconv2x2(400, jnp.float32), 1 / math.sqrt(4 * 400)),
    ],
)
def test_default_initialization_is_torchs(module, bound):
    params = module.init(jax.random.key(0), jnp.zeros((1, 1, 1, 100)))["params"]
    for x in params.values():
        assert bound * 0.98 < np.abs(x).max() <= bound
        assert x.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_other_initializations_have_zero_biases():
    module = conv.Conv(256, 3, jnp.float32, kernel_init=conv.MSRA)
    params = module.init(jax.random.key(0), jnp.zeros((1, 1, 1, 16)))["params"]
    assert params["kernel"].std() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.02)
    assert not params["bias"].any()


def test_batch_norm_keeps_torchs_running_statistics():
    x = np.random.default_rng(0).normal(2, 3, (2, 3, 4, 5)).astype(np.float32)
    module = conv.BatchNorm(jnp.float32)
    variables = module.init(jax.random.key(0), jnp.asarray(x), True)
    assert not variables["batch_stats"]["mean"].any()  # initialization is no step
    y, state = module.apply(variables, jnp.asarray(x), True, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    stats = state["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var * 24 / 23, rtol=1e-5)
    y = module.apply(variables | state, jnp.asarray(x), False)
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_batch_norm_ignores_examples_that_are_not_valid():
    x = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype(np.float32)
    x[2:] = 100
    module = conv.BatchNorm(jnp.float32)
    variables = module.init(jax.random.key(0), jnp.asarray(x), True)

    def run(x, valid=None):
        valid = None if valid is None else jnp.array(valid)
        return module.apply(variables, jnp.asarray(x), True, valid, mutable=["batch_stats"])

    ours, state = run(x, [True, True, False, False])
    expected, expected_state = run(x[:2])
    np.testing.assert_allclose(ours[:2], expected, atol=1e-6)
    jax.tree.map(np.testing.assert_allclose, state, expected_state)
    none, state = run(x, [False] * 4)
    assert np.isfinite(none).all()
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


def test_upsampling_repeats_and_fills_odd_sizes():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    out = conv.upsample(x, (5, 6))[0, :, :, 0]
    np.testing.assert_array_equal(out[:4], np.asarray(x[0, :, :, 0]).repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(out[4], out[3])


def test_unknown_norm_is_an_error():
    with pytest.raises(ValueError, match="no norm 'instance'"):
        conv.norm("instance", jnp.zeros((1, 1, 1, 1)), dtype=jnp.float32, name="norm")
