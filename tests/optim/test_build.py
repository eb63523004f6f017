"""Optimizers of the classification recipes, against the official code."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mae_jax.models.vit import BatchNorm
from mae_jax.ops.trees import combine, partition
from mae_jax.optim import optimizers, param_groups
from mae_jax.runtime.errors import UsageError
from tests.parity import official

with open(official.path("lr_decay.json"), encoding="utf-8") as file:
    LAYERS = json.load(file)
DEPTH = {"base": 12, "large": 24, "huge": 32}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_scales_and_decay_are_the_official_ones(name):
    depth = DEPTH[re.match(r"vit_(\w+?)_", name)[1]]
    decay = float(name.rsplit("=", 1)[1])
    for parameter, want in LAYERS[name].items():
        shape = (1,) if want["weight_decay"] == 0 and "embed" not in parameter else (1, 1, 1)
        shape = (1, 1) if want["weight_decay"] else shape
        shape = (1, 1, 1) if parameter in ("cls_token", "pos_embed") else shape
        ours = "/".join(official.convert(parameter, np.zeros(shape))[0])
        assert param_groups.layer_id(ours, depth) == want["layer"], parameter
        scale = param_groups.layer_scale(ours, depth, decay)
        assert scale == pytest.approx(want["lr_scale"], rel=1e-12), parameter
        assert param_groups.decays_finetuning(ours, len(shape)) == (want["weight_decay"] > 0)


def test_an_unknown_parameter_has_no_layer():
    with pytest.raises(UsageError, match="adapter/kernel"):
        param_groups.layer_id("adapter/kernel", 12)


def test_the_layer_scale_acts_on_the_decay_too():
    tx = optimizers.adamw(
        lambda step: jnp.asarray(0.1), b1=0.9, b2=0.999, weight_decay=0.5, scale=lambda name: 0.25
    )
    params = {"blocks_0": {"kernel": jnp.ones((2, 2))}}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["blocks_0"]["kernel"], -0.1 * 0.25 * 0.5, rtol=1e-6)


@pytest.mark.parametrize("run", ["wd0", "wd1e-4"])
def test_five_steps_of_the_probe_match(run):
    """LARS, BatchNorm and the linear head together, from pixels to evaluation."""
    ref = official.subset(official.arrays("linprobe_lars.npz"), f"{run}/")
    lr = float(ref["lr"])
    tx = optimizers.lars(lambda step: jnp.asarray(lr), momentum=0.9, weight_decay=float(ref["wd"]))
    params = {"kernel": jnp.asarray(ref["W0"].T), "bias": jnp.asarray(ref["b0"])}
    state, norm = tx.init(params), BatchNorm()
    stats = norm.init(jax.random.key(0), jnp.asarray(ref["X"][0]), False)

    @jax.jit
    def grad(params, stats, x, labels):
        def loss(params):
            y, new = norm.apply(stats, x, True, mutable=["batch_stats"])
            logits = y @ params["kernel"] + params["bias"]
            errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return errors.mean(), (logits, new)

        return jax.value_and_grad(loss, has_aux=True)(params)

    for step in range(5):
        (loss, (logits, stats)), grads = grad(params, stats, ref["X"][step], ref["Y"][step])
        at = official.subset(ref, f"step{step}/")
        np.testing.assert_allclose(logits, at["logits"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(loss, at["loss"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(grads["kernel"].T, at["gW"], rtol=0, atol=1e-5)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"].T, at["W"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(params["bias"], at["b"], rtol=0, atol=1e-5)
    y = norm.apply(stats, ref["X"][5], False)
    logits = y @ params["kernel"] + params["bias"]
    np.testing.assert_allclose(logits, ref["eval_logits"], rtol=0, atol=1e-5)


NAMES = (
    "cls_token", "pos_embed", "patch_embed/proj/kernel", "blocks_0/attn/qkv/kernel",
    "blocks_1/norm1/scale", "blocks_1/attn/proj/bias", "blocks_1/norm2/scale",
    "blocks_1/mlp/fc1/kernel", "norm/scale", "fc_norm/bias", "head/kernel",
)  # fmt: skip


@pytest.mark.parametrize(
    "blocks, trained",
    [
        (0.5, ["blocks_1/norm2/scale", "blocks_1/mlp/fc1/kernel"]),
        (1, [name for name in NAMES if name.startswith("blocks_1/")]),
        (2, [name for name in NAMES if name.startswith("blocks_")]),
    ],
)
def test_partial_fine_tuning_trains_the_last_blocks_norm_and_head(blocks, trained):
    trainable = param_groups.last_blocks(2, blocks)
    expected = [*trained, "norm/scale", "fc_norm/bias", "head/kernel"]
    assert [name for name in NAMES if trainable(name)] == expected


def test_partition_and_combine_are_inverse():
    tree = {"a": {"x": 1, "y": 2}, "b": {"x": 3}, "c": 4}
    trained, frozen = partition(tree, lambda name: name in ("a/x", "c"))
    assert (trained, frozen) == ({"a": {"x": 1}, "c": 4}, {"a": {"y": 2}, "b": {"x": 3}})
    assert combine(trained, frozen) == tree
