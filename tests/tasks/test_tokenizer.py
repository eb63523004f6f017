"""Training of a tokenizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from mae_jax.checkpoint import reader
from mae_jax.convert import tokenizer
from mae_jax.ops import rng
from mae_jax.ops.trees import flatten
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.tokenizer import Tokenizer, kl_to_uniform
from mae_jax.train import loop
from tests.helpers import tiny_configs


def test_parts_of_a_batch_make_the_step_of_the_whole():
    _, whole = tiny_configs.one_step(Tokenizer, tiny_configs.tokenizer_config())
    _, parts = tiny_configs.one_step(
        Tokenizer, tiny_configs.tokenizer_config(grad_accum=2, mesh__fsdp=2)
    )
    for name in ("loss", "reconstruction", "kl", "mse", "grad_norm", "temperature"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=2e-5, err_msg=name)


def test_the_temperature_falls_over_the_run_and_every_step_has_its_own_noise():
    task = Tokenizer(tiny_configs.tokenizer_config(steps=10, tokenizer__temperature=(2.0, 0.5)), "")
    batch = {"image": jnp.zeros((4, 16, 16, 3), jnp.uint8)}
    prepare = jax.jit(task.prepare)
    first, middle, again = (
        prepare(batch, rng.stream_key(0, "train", step), step) for step in (0, 5, 5)
    )
    np.testing.assert_allclose(first["temperature"], 2)
    np.testing.assert_allclose(middle["temperature"], 1, rtol=1e-6)
    assert len({*first["seed"].tolist(), *middle["seed"].tolist()}) == 8
    np.testing.assert_array_equal(middle["seed"], again["seed"])


def test_divergence_from_uniform():
    logits = np.random.default_rng(0).normal(size=(2, 3, 7)).astype(np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = scipy.stats.entropy(shares, np.full_like(shares, 1 / 7), axis=-1)
    np.testing.assert_allclose(kl_to_uniform(logits), expected, rtol=1e-4)


def test_it_learns_and_resumes_bit_equal_and_can_be_used(tmp_path):
    config = tiny_configs.tokenizer_config(
        steps=60, eval_every=30, figure_every=60, data__num_train=64
    )

    def run(name, **options):
        folder = str(tmp_path / name)
        return loop.run(Tokenizer(config, folder), config, folder, **options)

    assert run("whole")
    assert not run("parts", **tiny_configs.stop_in_step(31))
    assert run("parts")
    for split in ("train", "eval"):
        lines = [tiny_configs.metric_lines(tmp_path / name, split) for name in ("whole", "parts")]
        assert lines[0] == lines[1]
    before, *_, after = lines[0]
    assert after["loss"] < before["loss"] - 0.05
    assert after["mse"] < before["mse"]
    assert after["count"] == 20 and 1 / 16 <= after["used_codes"] <= 1
    assert 1 <= after["perplexity"] <= 16
    whole, parts = (reader.load_arrays(str(tmp_path / n))["params"] for n in ("whole", "parts"))
    for x, y in zip(*map(jax.tree.leaves, (whole, parts)), strict=True):
        np.testing.assert_array_equal(x, y)
    picture = Image.open(tmp_path / "whole/pictures/step_00000060.png")
    assert picture.size == (2 * 100 + 4, 18 + 3 * 100)
    found = tokenizer.load(str(tmp_path / "whole"))
    assert found.metadata()["parts"] == ["encoder", "decoder"]
    for name, x in flatten(whole).items():
        np.testing.assert_array_equal(found.arrays[name], x)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokenizer__groups": 3}, "groups=3 needs 4"),
        ({"model__image_size": (17, 16)}, "not divisible by the 2 pixels"),
        ({"tokenizer__hidden_dim": 6}, "multiple of 4"),
        ({"data__dtype": "float32"}, "pixels in"),
        ({"init_from": "runs/x"}, "starts from scratch"),
        ({"tokenizer__vocab_size": 1}, "tokenizer.vocab_size=1 must be"),
        ({"tokenizer__temperature": (0.0, 1.0)}, "tokenizer.temperature"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Tokenizer(tiny_configs.tokenizer_config(**changes), "")
