"""The loss on masked patches, or on all of them (paper section 3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.ops import masking
from mae_jax.ops.patches import patchify, to_float, unpatchify
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tools.bench import __main__ as bench
from mae_jax.tools.bench.baselines import plain_mae
from tests.helpers import tiny_configs


def made(**changes):
    """A task, random parameters (not the initial ones), images and noise."""
    task = Pretrain(tiny_configs.config(**changes), "")
    params, _ = jax.jit(task.init_variables)()
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    noise = jnp.asarray(rng.uniform(size=(4, 16)).astype(np.float32))
    return task, jax.tree.unflatten(tree, leaves), {"image": images, "noise": noise}


@pytest.mark.parametrize("loss_on", ["masked", "all"])
@pytest.mark.parametrize("normalize", [False, True])
def test_loss_and_gradients_are_those_of_the_plain_order(loss_on, normalize):
    task, params, batch = made(target__loss_on=loss_on, target__normalize=normalize)
    pixels = to_float(patchify(batch["image"], (4, 4)), **task.pixels)

    def plain(params):
        images = unpatchify(pixels, (4, 4), (4, 4))
        every = loss_on == "all"
        return plain_mae.forward(
            params, images, batch["noise"], model=task.model, ratio=0.75, normalize=normalize,
            loss_on_all=every,
        )[0]  # fmt: skip

    with jax.default_matmul_precision("float32"):
        ours = jax.jit(jax.value_and_grad(lambda p: task.loss(p, {}, batch)[0]))(params)
        theirs = jax.jit(jax.value_and_grad(plain))(params)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (ours[1], theirs[1])), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, float(np.abs(b).max())))


@pytest.mark.parametrize("loss_on, expected", [("masked", 12), ("all", 16)])
def test_which_patches_are_looked_at(loss_on, expected):
    """Loss and gradient depend only on the original pixels of these patches."""
    task, params, batch = made(target__loss_on=loss_on)
    seen = []

    def note(pred, values):
        seen.append((pred.shape, values.shape))
        return jnp.square(pred - values).mean(axis=(1, 2))

    task.target.loss = note
    task.loss(params, {}, batch)
    assert seen == [((4, expected, 48), (4, expected, 48))]


def test_the_evaluation_reports_the_loss_that_is_trained():
    values = {}
    for loss_on in ("masked", "all"):
        task, params, batch = made(target__loss_on=loss_on)
        index = jnp.arange(4)
        rows = {"image": batch["image"], "index": index, "valid": jnp.ones(4, bool)}
        sums = task._eval_sums((params, {}), rows)
        noise = task._fixed_noise(index)
        hidden = masking.from_noise(noise, 0.75)
        pixels = to_float(patchify(batch["image"], (4, 4)), **task.pixels)
        visible = jnp.take_along_axis(pixels, hidden.ids_keep[..., None], axis=1)
        pred = task.model.apply({"params": params}, visible, hidden, method=task.model.predict)
        error = np.asarray(jnp.square(pred - pixels).mean(axis=-1))
        mask = np.asarray(hidden.mask) if loss_on == "masked" else np.ones((4, 16))
        by_hand = sum((error[i] * mask[i]).sum() / mask[i].sum() for i in range(4))
        np.testing.assert_allclose(sums["loss"][0], by_hand, rtol=1e-5)
        values[loss_on] = by_hand
    assert abs(values["all"] - values["masked"]) > 1e-3


def test_benchmarks_compare_like_with_like(capsys):
    for changes in ({"target__kind": "pca", "target__components": 8}, {"target__loss_on": "all"}):
        flags = tiny_configs.flags(**changes)
        assert bench.main(["step", *flags, "--repeats=1"]) == 0
        capsys.readouterr()
        with pytest.raises(UsageError, match="--against=torch .*set --config.target"):
            bench.main(["step", *flags, "--repeats=1", "--against=torch"])
    assert bench.main(["step", *flags, "--repeats=1", "--against=plain"]) == 0
