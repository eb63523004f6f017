"""The discrete autoencoder, against an independent plain implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mae_jax.convert import tokenizer
from mae_jax.models import dvae
from mae_jax.ops.trees import flatten, unflatten
from tests.convert import dall_e


def test_the_published_sizes():
    model = dvae.DiscreteVAE((112, 112))
    assert model.factor == 8 and model.grid == (14, 14)
    encoder, decoder = (dvae.part_shapes(model, (part,)) for part in ("encoder", "decoder"))
    assert encoder["encoder/output/kernel"].shape == (1, 1, 2048, 8192)
    assert decoder["decoder/input/kernel"].shape == (1, 1, 8192, 128)
    assert decoder["decoder/output/kernel"].shape == (1, 1, 256, 6)
    theirs = dall_e.state_dict(
        np.random.default_rng(0), part="encoder", vocab=8192, hidden=256, groups=4
    )
    assert len(encoder) == len(theirs)
    assert sum(x.size for x in encoder.values()) == sum(x.size for x in theirs.values())


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_it_computes_what_the_published_modules_do(tmp_path, part):
    rng = np.random.default_rng(1)
    encoder = dall_e.state_dict(rng, part="encoder")
    decoder = dall_e.state_dict(rng, part="decoder")
    dall_e.write(tmp_path / "encoder.pkl", encoder, "encoder")
    dall_e.write(tmp_path / "decoder.pkl", decoder, "decoder")
    found = tokenizer.load(str(tmp_path))
    model = dvae.DiscreteVAE((8, 12), **found.sizes)
    variables = {"params": unflatten(found.arrays)}
    if part == "encoder":
        images = rng.uniform(size=(2, 8, 12, 3)).astype(np.float32)
        ours = model.apply(variables, images, method="logits")
        inputs, arrays = 0.8 * images + 0.1, encoder
        expected = [dall_e.forward(arrays, x.transpose(2, 0, 1), part) for x in inputs]
        np.testing.assert_array_equal(
            model.apply(variables, images, method="codes"), np.argmax(expected, axis=1)
        )
    else:
        codes = rng.integers(0, 24, (2, 2, 3))
        ours = model.apply(variables, np.eye(24)[codes], method="statistics")
        inputs = np.eye(24)[codes]
        expected = [dall_e.forward(decoder, x.transpose(2, 0, 1), part) for x in inputs]
        drawn = 1 / (1 + np.exp(-np.array(expected)[:, :3]))
        drawn = np.clip((drawn - 0.1) / 0.8, 0, 1).transpose(0, 2, 3, 1)
        ours_drawn = model.apply(variables, codes, method="decode_codes")
        np.testing.assert_allclose(ours_drawn, drawn, atol=2e-6)
    expected = np.array(expected).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_the_loss_is_minus_the_logarithm_of_a_density():
    rng = np.random.default_rng(2)
    images = rng.uniform(size=(5, 3)).astype(np.float32)
    means, logs = rng.normal(size=(2, 5, 3)).astype(np.float32)
    x = 0.8 * images.astype(np.float64) + 0.1
    logits = np.log(x / (1 - x))  # dx = x (1 - x) d logit
    density = scipy.stats.laplace.pdf(logits, means, np.exp(logs)) / (x * (1 - x))
    ours = dvae.logit_laplace_loss(images, np.concatenate([means, logs], axis=-1))
    np.testing.assert_allclose(ours, -np.log(density), rtol=1e-5, atol=1e-5)


def test_pixels_and_back():
    images = jnp.linspace(0, 1, 11)
    mapped = dvae.map_pixels(images)
    assert float(mapped.min()) == pytest.approx(0.1) and float(mapped.max()) == pytest.approx(0.9)
    np.testing.assert_allclose(dvae.unmap_pixels(mapped), images, atol=1e-6)
    assert dvae.unmap_pixels(jnp.array([0.0, 1.0])).tolist() == [0, 1]


def test_bfloat16_keeps_logits_in_float32():
    model = dvae.DiscreteVAE((8, 8), vocab_size=16, hidden_dim=8, groups=2, dtype=jnp.bfloat16)
    params = dvae.init_params(model, jax.random.key(0))
    assert {x.dtype for x in flatten(params).values()} == {jnp.dtype("float32")}
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    low = model.apply({"params": params}, images, method="logits")
    exact = model.clone(dtype=jnp.float32).apply({"params": params}, images, method="logits")
    assert low.dtype == jnp.float32 and 0 < float(jnp.abs(low - exact).max()) < 0.1


def test_multiplications_are_those_of_the_convolutions():
    model = dvae.DiscreteVAE(
        (4, 8), channels=1, vocab_size=5, hidden_dim=4, groups=2, blocks_per_group=1, init_dim=3
    )
    encoder = 32 * (49 * 4 + (9 * 4 + 9 + 9 + 4)) + 8 * ((4 * 8 + 9 * 8 + 2 * 36 + 16) + 8 * 5)
    decoder = 8 * (5 * 3 + (3 * 8 + 3 * 2 + 2 * 36 + 9 * 16)) + 32 * (
        (8 * 4 + 8 + 9 + 9 + 36) + 4 * 2
    )
    assert dvae.forward_macs(model) == encoder + decoder
