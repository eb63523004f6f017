"""The classifier against the official PyTorch code, from recorded numbers; and its parts."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mae_jax.models.layers import drop_path
from mae_jax.models.pos_embed import resize_table
from mae_jax.models.vit import SIZES, BatchNorm, VisionTransformer, forward_macs
from mae_jax.ops.mixing import smooth_one_hot
from mae_jax.ops.patches import patchify, to_float
from mae_jax.ops.trees import path_name
from mae_jax.optim import param_groups
from mae_jax.optim.optimizers import adamw
from tests.parity import official

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module", params=["cls", "mean"])
def pool(request):
    return request.param


@pytest.fixture(scope="module")
def ref(pool):
    return official.arrays(f"vit_tiny_gp{int(pool == 'mean')}.npz")


def close(ours, theirs, bound, message=""):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=bound, err_msg=message)


def pixels(ref):
    return to_float(patchify(jnp.asarray(ref["imgs_u8"]), (4, 4)), MEAN, STD)


def test_features_and_logits_match(pool, ref):
    model, variables = official.tiny_vit(pool), {"params": official.vit_params(pool)}
    features = jax.jit(lambda x: model.apply(variables, x, method=model.features))(pixels(ref))
    close(features, ref["features"], 1e-5)
    close(jax.jit(lambda x: model.apply(variables, x))(pixels(ref)), ref["logits"], 1e-6)
    if pool == "cls":
        tokens = jax.jit(lambda x: model.apply(variables, x, method=model.encode))(pixels(ref))
        close(tokens[:, 0], ref["features"], 1e-5)


def test_losses_match(pool, ref):
    labels, logits = jnp.asarray(ref["labels"]), jnp.asarray(ref["logits"])
    for smoothing, name in ((0.0, "loss_ce"), (0.1, "loss_smooth01")):
        targets = smooth_one_hot(labels, 10, smoothing)
        close(optax.softmax_cross_entropy(logits, targets).mean(), ref[name], 1e-6)
    soft = 0.3 * smooth_one_hot(labels, 10, 0.1) + 0.7 * smooth_one_hot(labels[::-1], 10, 0.1)
    close(soft, ref["soft_target_lam03_s01"], 1e-6)
    close(optax.softmax_cross_entropy(logits, soft).mean(), ref["loss_soft"], 1e-6)


def loss_and_grads(pool, ref):
    model, labels = official.tiny_vit(pool), jnp.asarray(ref["labels"])
    targets = smooth_one_hot(labels, 10, 0.1)

    def loss(params):
        logits = model.apply({"params": params}, pixels(ref))
        return optax.softmax_cross_entropy(logits, targets).mean()

    return jax.jit(jax.value_and_grad(loss))


def test_every_gradient_matches(pool, ref):
    loss, grads = loss_and_grads(pool, ref)(official.vit_params(pool))
    expected = official.to_tree(official.subset(ref, "grad/"), skipped=())
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_flatten_with_path(grads)[0], jax.tree.leaves(expected), strict=True
    ):
        close(ours, theirs, 1e-4 * np.abs(theirs).max() + 1e-7, path_name(path))
    close(loss, ref["loss_smooth01"], 1e-6)


@pytest.mark.parametrize("run, bound", [("recipe", 1e-6), ("strong", 5e-5)])
def test_three_fine_tuning_steps_match(pool, ref, run, bound):
    lr = float(ref[f"step3_lr_{run}"])
    tx = adamw(
        lambda step: jnp.asarray(lr),
        b1=0.9,
        b2=0.999,
        weight_decay=0.05,
        decays=param_groups.decays_finetuning,
        scale=lambda name: param_groups.layer_scale(name, 3, 0.75),
    )
    params = jax.tree.map(jnp.asarray, official.vit_params(pool))
    state, compiled = jax.jit(tx.init)(params), loss_and_grads(pool, ref)

    @jax.jit
    def update(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(3):
        loss, grads = compiled(params)
        close(loss, ref[f"step3_lr_{run}/losses"][step], 1e-5)
        params, state = update(grads, state, params)
    expected = official.to_tree(official.subset(ref, f"step3_lr_{run}/param/"), skipped=())
    start = official.vit_params(pool)
    for (path, ours), theirs, old in zip(
        jax.tree_util.tree_flatten_with_path(params)[0],
        jax.tree.leaves(expected),
        jax.tree.leaves(start),
        strict=True,
    ):
        name, ours = path_name(path), np.asarray(ours)
        if name.endswith("qkv/bias"):  # true gradient 0, so Adam amplifies rounding
            ours, theirs, old = (np.delete(x, np.s_[48:96]) for x in (ours, theirs, old))
        close(ours, theirs, bound, name)
        assert np.abs(theirs - old).max() > 10 * bound, name


def test_stochastic_depth_matches():
    ref = official.arrays("drop_path.npz")
    ours = drop_path(
        jnp.asarray(ref["x"]), float(ref["drop_prob"]), jnp.asarray(ref["rand"][:, 0, 0])
    )
    close(ours, ref["out"], 1e-6)


def test_rates_of_stochastic_depth_are_the_official_ones():
    with open(official.path("drop_path_rates.json"), encoding="utf-8") as file:
        reference = json.load(file)
    for name, rates in reference.items():
        depth, rate = name.removeprefix("depth").split("_rate")
        model = official.tiny_vit("cls", depth=int(depth), drop_path=float(rate))
        close(model.drop_rates, rates, 1e-7, name)


def test_noise_decides_example_by_example_which_branches_run():
    model = official.tiny_vit("mean", drop_path=0.5)
    variables = {"params": official.vit_params("mean")}
    patches = pixels(official.arrays("vit_tiny_gp1.npz"))
    apply = jax.jit(lambda noise: model.apply(variables, patches, noise))
    keep, rates = np.full((4, 3, 2), 0.999), np.array([0.0, 0.25, 0.5])
    kept = apply(keep)
    some = keep.copy()
    some[1, 2, 0] = 0.1  # one branch of one image
    changed = np.abs(np.asarray(apply(some) - kept)).max(axis=1) > 1e-6
    np.testing.assert_array_equal(changed, [False, True, False, False])
    # All branches that can be dropped are: only the first block, whose rate is 0, remains.
    one = official.tiny_vit("mean", depth=1)
    params = {k: v for k, v in variables["params"].items() if k not in ("blocks_1", "blocks_2")}
    dropped = model.apply(variables, patches, np.where(rates[:, None] > 0, 0.0, keep))
    close(dropped, one.apply({"params": params}, patches), 1e-6)


@pytest.mark.parametrize(
    "name",
    [
        *("sincos_d64_14to28", "sincos_d64_14to12", "sincos_d768_14to28"),
        *("random_d16_14to7", "random_d16_14to24", "random_d16_7to14"),
    ],
)
def test_resized_position_tables_match(name):
    ref = official.arrays("pos_embed_interp.npz")
    old, new = (int(n) for n in name.rsplit("_", 1)[1].split("to"))
    ours = resize_table(ref[f"{name}/src"], (old, old), (new, new))
    close(ours, ref[f"{name}/dst"], 1e-5)


def test_oblong_position_tables_are_resized_by_their_true_grid():
    rows = np.linspace(0, 1, 6)[None, :, None, None] * np.ones((1, 6, 4, 1))
    columns = np.linspace(0, 1, 4)[None, None, :, None] * np.ones((1, 6, 4, 1))
    table = np.concatenate([rows, columns], axis=-1).reshape(1, 24, 2)
    table = np.concatenate([np.full((1, 1, 2), 7.0), table], axis=1)
    out = resize_table(table, (6, 4), (12, 4))
    np.testing.assert_array_equal(out[0, 0], [7, 7])
    grid = out[0, 1:].reshape(12, 4, 2)
    close(grid[:, :, 1], columns[0, :1, :, 0].repeat(12, 0), 1e-6)
    close(grid[1:-1, 0, 0], np.clip((np.arange(1, 11) + 0.5) / 2 - 0.5, 0, 5) / 5, 0.05)
    with pytest.raises(ValueError, match="does not match"):
        resize_table(table, (4, 4), (8, 8))


def test_batch_norm_is_torchs_and_groups_are_apart():
    ref = official.subset(official.arrays("linprobe_lars.npz"), "wd0/")
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), jnp.asarray(ref["X"][0]), False)
    for step in range(5):
        y, variables = norm.apply(variables, ref["X"][step], True, mutable=["batch_stats"])
        stats = variables["batch_stats"]
        close(y.mean(0), np.zeros(32), 1e-5)
        for ours, theirs in (("mean", "running_mean"), ("var", "running_var")):
            np.testing.assert_allclose(stats[ours], ref[f"step{step}/{theirs}"], 1e-6, 1e-6)
    x = jnp.concatenate([jnp.asarray(ref["X"][0]), 10 + jnp.asarray(ref["X"][1])])
    y, _ = BatchNorm(16).apply(variables, x, True, mutable=["batch_stats"])
    first, _ = norm.apply(variables, x[:16], True, mutable=["batch_stats"])
    close(y[:16], first, 1e-6)
    close(y[16:].mean(0), np.zeros(32), 1e-5)


def sized(name, **changes):
    size = SIZES[name]._asdict()
    fields = {"image_size": (224, 224), "patch_size": (16, 16), "channels": 3, "num_classes": 1000}
    return VisionTransformer(**fields | size | changes)


def initialized(model, seed=11):
    patches = jnp.zeros((1, model.grid[0] * model.grid[1], model.patch_size[0] ** 2 * 3))
    return jax.jit(model.init)(jax.random.key(seed), patches)["params"]


@pytest.mark.parametrize("name, total", [("B", 86.57e6), ("L", 304.33e6), ("H", 632.05e6)])
def test_sizes_are_the_published_ones(name, total):
    patch = (14, 14) if name == "H" else (16, 16)
    model = sized(name, patch_size=patch, pool="mean")
    patches = jnp.zeros((1, model.grid[0] * model.grid[1], patch[0] ** 2 * 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), patches)["params"]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == pytest.approx(total, rel=1e-4)
    giga = {"B": 17.56, "L": 61.55, "H": 167.29}[name]
    assert forward_macs(model) / 1e9 == pytest.approx(giga, rel=1e-3)


def test_initial_values_have_the_official_statistics():
    with open(official.path("init_stats.json"), encoding="utf-8") as file:
        stats = json.load(file)["vit_vitb"]
    pool = "mean" if any(name.startswith("fc_norm") for name in stats) else "cls"
    params = initialized(sized("B", pool=pool))
    seen = 0
    for name, want in stats.items():
        keys, _ = official.convert(name, np.zeros(want["shape"], np.bool_))
        leaf = params
        for key in keys:
            leaf = leaf[key]
        x = np.asarray(leaf, np.float64)
        spread = want["std"] / math.sqrt(x.size)
        assert x.size == math.prod(want["shape"])
        assert abs(x.mean() - want["mean"]) <= 8 * spread, name
        assert abs(x.std() - want["std"]) <= 8 * spread, name
        seen += 1
    assert seen == len(jax.tree.leaves(params))


def test_loss_at_the_start_is_that_of_guessing():
    model = sized("Ti", depth=2, pool="mean", head_std=2e-5)
    params = initialized(model)
    patches = jax.random.normal(jax.random.key(1), (4, 196, 768))
    logits = jax.jit(lambda p, x: model.apply({"params": p}, x))(params, patches)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean()
    assert float(loss) == pytest.approx(math.log(1000), abs=1e-3)
