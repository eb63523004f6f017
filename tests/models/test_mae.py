"""The efficient formulation equals the paper's; initial values and sizes are the official ones."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models import layers
from mae_jax.models.mae import MaskedAutoencoder, train_flops
from mae_jax.models.pos_embed import sincos_2d
from mae_jax.models.targets import pixel
from mae_jax.models.vit import SIZES
from mae_jax.ops import masking
from mae_jax.ops.patches import gather, patchify, unpatchify
from mae_jax.tools.bench.baselines import plain_mae
from tests.parity import official


def sized(name, **changes):
    size = SIZES[name]
    fields = {
        "image_size": (224, 224),
        "patch_size": (14, 14) if name == "H" else (16, 16),
        "channels": 3,
        "embed_dim": size.embed_dim,
        "depth": size.depth,
        "num_heads": size.num_heads,
    }
    return MaskedAutoencoder(**fields | changes)


def init(model, seed=0, ratio=0.75):
    masked = masking.from_noise(jnp.zeros((1, model.grid[0] * model.grid[1])), ratio)
    dim = model.patch_size[0] * model.patch_size[1] * model.channels
    return model.init(jax.random.key(seed), jnp.zeros((1, masked.len_keep, dim)), masked)["params"]


CASES = {
    "square": (official.TINY, 0.75, True),
    "raw pixels": (official.TINY, 0.6, False),
    "wide, 5 channels, oblong patch": (
        official.TINY | {"image_size": (16, 40), "patch_size": (4, 8), "channels": 5},
        0.5,
        True,
    ),
    "one-block decoder": (official.TINY | {"decoder_depth": 1, "channels": 1}, 0.9, False),
    "mask tokens in the encoder": (official.TINY | {"encoder_mask_tokens": True}, 0.6, True),
    "mask tokens, linear head": (
        official.TINY | {"encoder_mask_tokens": True, "decoder_depth": 0},
        0.75,
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_paper_order_formulation(case):
    fields, ratio, normalize = CASES[case]
    model = MaskedAutoencoder(**fields)
    rng = np.random.default_rng(1)

    def normal(shape):
        return rng.standard_normal(shape, np.float32)

    # Not the initial parameters: their biases are zeros, which hide mistakes.
    params = jax.tree.map(
        lambda x: np.float32(0.1) * normal(x.shape) + (x.ndim == 1),
        jax.eval_shape(lambda: init(model)),
    )
    images = normal((3, *model.image_size, model.channels))
    noise = rng.random((3, model.grid[0] * model.grid[1]), np.float32)
    masked = masking.from_noise(noise, ratio)

    def cheap(params):
        patches = patchify(images, model.patch_size)
        visible, hidden = gather(patches, masked.ids_keep), gather(patches, masked.ids_masked)
        pred = model.apply({"params": params}, visible, masked)
        target = pixel.pixel_target(hidden, normalize=normalize)
        return pixel.reconstruction_loss(pred, target).mean()

    def plain(params):
        loss, pred, mask = plain_mae.forward(
            params, images, noise, model=model, ratio=ratio, normalize=normalize
        )
        return loss, (pred, mask)

    with jax.default_matmul_precision("float32"):
        (expected, (pred, mask)), expected_grads = jax.jit(jax.value_and_grad(plain, has_aux=True))(
            params
        )
        loss, grads = jax.jit(jax.value_and_grad(cheap))(params)
        visible = gather(patchify(images, model.patch_size), masked.ids_keep)
        predict = jax.jit(lambda *a: model.apply({"params": params}, *a, method=model.predict))
        ours = predict(visible, masked)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(masked.mask, mask)
    np.testing.assert_allclose(ours, pred, rtol=0, atol=1e-5 * float(np.abs(pred).max()))
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(grads)[0], jax.tree.leaves(expected_grads), strict=True
    ):
        assert np.abs(b).max() > 0, f"no gradient reaches {path}"
        scale = max(float(np.abs(b).max()), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=str(path))


def test_remat_computes_the_same_from_less():
    fields = official.TINY | {"depth": 2, "decoder_depth": 2}
    plain = MaskedAutoencoder(**fields)
    noise = jax.random.uniform(jax.random.key(0), (4, math.prod(plain.grid)))
    masked = masking.from_noise(noise, 0.5)
    dim = math.prod(plain.patch_size) * plain.channels
    visible = jax.random.normal(jax.random.key(1), (4, masked.len_keep, dim))
    params = jax.jit(lambda: init(plain))()
    results, kept = {}, {}
    for remat in layers.REMAT:
        model = MaskedAutoencoder(**fields, remat=remat)

        def loss(p, model=model):
            return jnp.square(model.apply({"params": p}, visible, masked)).sum()

        results[remat] = jax.jit(jax.grad(loss))(params)
        backward = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params)
        kept[remat] = sum(x.size for x in jax.tree.leaves(backward))
    for remat in ("dots", "blocks"):
        for a, b in zip(*map(jax.tree.leaves, (results[remat], results["none"])), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(b).max()))
    assert kept["blocks"] < kept["dots"] < kept["none"]


# Trainable parameters of the official models (without position tables).
COUNTS = {
    "B": (85_647_360, 26_008_320, 151_296),
    "L": (303_099_904, 26_139_392, 201_728),
    "H": (630_435_840, 26_178_124, 328_960),
}


def test_mask_tokens_of_the_encoder_take_the_place_of_the_decoder_s():
    plain, other = (sized("B", encoder_mask_tokens=tokens) for tokens in (False, True))
    ours, theirs = (jax.eval_shape(lambda m=m: init(m)) for m in (plain, other))
    assert ours.keys() - theirs.keys() == {"mask_token"}
    assert theirs.keys() - ours.keys() == {"encoder_mask_token"}
    assert theirs["encoder_mask_token"].shape == (1, 1, 768)
    linear = jax.eval_shape(lambda: init(sized("B", encoder_mask_tokens=True, decoder_depth=0)))
    assert theirs.keys() - linear.keys() == {f"decoder_blocks_{i}" for i in range(8)}
    wide = official.TINY | {"embed_dim": 768, "encoder_mask_tokens": True}
    token = jax.jit(lambda: init(MaskedAutoencoder(**wide))["encoder_mask_token"])()
    assert float(token.std()) == pytest.approx(0.02, rel=0.1)


def test_whole_images_are_encoded_without_mask_tokens():
    fields = official.TINY | {"encoder_mask_tokens": True}
    model, plain = MaskedAutoencoder(**fields), MaskedAutoencoder(**official.TINY)
    params = jax.jit(lambda: init(model))()
    patches = jax.random.normal(jax.random.key(0), (2, 64, 48))
    ids = jnp.broadcast_to(jnp.arange(64), (2, 64))
    other = params | {"mask_token": jnp.zeros((1, 1, official.TINY["decoder_embed_dim"]))}
    ours, theirs = (
        jax.jit(functools.partial(m.apply, method=m.encode))({"params": p}, patches, ids)
        for m, p in ((model, params), (plain, other))
    )
    assert ours.shape == (2, 65, official.TINY["embed_dim"])
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_official_ones(name):
    model = sized(name)
    shapes = jax.eval_shape(lambda: init(model))
    decoder = {k: v for k, v in shapes.items() if k.startswith("decoder") or k == "mask_token"}
    encoder = {k: v for k, v in shapes.items() if k not in decoder}

    def count(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    table = sincos_2d(model.embed_dim, model.grid)
    assert (count(encoder), count(decoder), table.size) == COUNTS[name]


@pytest.mark.parametrize("name, giga", [("B", 58.7), ("L", 124.5), ("H", 291.4)])
def test_training_flops_are_those_of_the_published_arithmetic(name, giga):
    model = sized(name)
    keep = masking.num_keep(model.grid[0] * model.grid[1], 0.75)
    assert train_flops(model, keep) / 1e9 == pytest.approx(giga, rel=2e-3)


@pytest.mark.parametrize("name, giga, ratio", [("B", 22.99, 2.35), ("L", 67.01, 3.23),
                                               ("H", 174.55, 3.59)])  # fmt: skip
def test_mask_tokens_in_the_encoder_cost_what_the_arithmetic_says(name, giga, ratio):
    plain, other = sized(name), sized(name, encoder_mask_tokens=True)
    keep = masking.num_keep(plain.grid[0] * plain.grid[1], 0.75)
    assert train_flops(other, keep) / 6e9 == pytest.approx(giga, abs=0.01)
    assert train_flops(other, keep) / train_flops(plain, keep) == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize(
    "key, row",
    [
        ("decoder_depth", {1: 16.1, 2: 16.8, 4: 18.1, 8: 20.8, 12: 23.4}),
        ("decoder_embed_dim", {128: 15.8, 256: 16.8, 512: 20.8, 768: 27.2, 1024: 36.1}),
        ("ratio", {0.1: 60.6, 0.4: 41.9, 0.5: 35.9, 0.75: 20.8, 0.8: 17.7, 0.9: 11.6}),
    ],
)
def test_decoders_and_mask_ratios_of_the_paper_cost_what_the_arithmetic_says(key, row):
    for value, giga in row.items():
        ratio = value if key == "ratio" else 0.75
        model = sized("L", **({} if key == "ratio" else {key: value}))
        assert train_flops(model, masking.num_keep(196, ratio)) / 6e9 == pytest.approx(
            giga, abs=0.06
        )


@pytest.mark.parametrize("width", [128, 256, 512, 768, 1024])
def test_sixteen_heads_divide_every_width_of_the_paper(width):
    model = sized("Ti", depth=1, decoder_depth=1, decoder_embed_dim=width)
    shapes = jax.eval_shape(lambda: init(model))
    assert model.decoder_num_heads == 16
    assert shapes["decoder_blocks_0"]["attn"]["qkv"]["kernel"].shape == (width, 3 * width)


def test_initial_values_of_vit_b_have_the_official_statistics():
    with open(official.path("init_stats.json"), encoding="utf-8") as file:
        stats = json.load(file)["mae_vitb"]
    params = jax.jit(lambda: init(sized("B"), seed=11))()
    seen = 0
    for name, want in stats.items():
        if name in official.SKIPPED:
            continue
        keys, _ = official.convert(name, np.zeros(want["shape"], np.bool_))
        leaf = params
        for key in keys:
            leaf = leaf[key]
        x = np.asarray(leaf, np.float64)
        seen += 1
        assert x.size == math.prod(want["shape"])
        # Standard errors of mean and deviation; uniform and normal draws alike stay well inside.
        spread = want["std"] / math.sqrt(x.size)
        assert abs(x.mean() - want["mean"]) <= 8 * spread, name
        assert abs(x.std() - want["std"]) <= 8 * spread, name
        if want["std"] and name not in ("cls_token", "mask_token"):  # uniform: a sharp bound
            assert np.abs(x).max() == pytest.approx(want["absmax"], rel=2e-2), name
    assert seen == len(jax.tree.leaves(params))


def test_loss_at_the_start_is_one_point_eight():
    model = sized("Ti", depth=2, decoder_depth=2)
    params = jax.jit(lambda: init(model))()
    images = jax.random.normal(jax.random.key(2), (4, 224, 224, 3))
    masked = masking.from_noise(jax.random.uniform(jax.random.key(3), (4, 196)), 0.75)
    patches = patchify(images, model.patch_size)
    visible = gather(patches, masked.ids_keep)
    pred = jax.jit(lambda *a: model.apply({"params": params}, *a))(visible, masked)
    target = pixel.pixel_target(gather(patches, masked.ids_masked), normalize=True)
    loss = float(pixel.reconstruction_loss(pred, target).mean())
    assert loss == pytest.approx(1 + 512 * 2 / (512 + 768), abs=0.1)


def test_visible_patches_decide_and_hidden_ones_do_not():
    model, params = official.tiny_model(), official.tiny_params()
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    masked = masking.from_noise(jax.random.uniform(jax.random.key(1), (2, 64)), 0.75)

    @jax.jit
    def predict(images):
        patches = gather(patchify(images, model.patch_size), masked.ids_keep)
        return model.apply({"params": params}, patches, masked)

    hidden = masked.mask[:, :, None] * jnp.ones((1, 1, 48))
    where = unpatchify(hidden, model.patch_size, model.grid)
    np.testing.assert_array_equal(predict(images), predict(images + 7 * where))
    assert not np.allclose(predict(images), predict(images + 7 * (1 - where)))
