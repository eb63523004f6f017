"""Changes of weights, each against what it must do to the model's function."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mae_jax import convert
from mae_jax.convert import surgery, timm
from mae_jax.convert.save import with_tables
from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.models.pos_embed import resize_table, sincos_2d
from mae_jax.models.vit import VisionTransformer
from mae_jax.ops import masking
from mae_jax.ops.patches import gather, patchify
from mae_jax.runtime.errors import UsageError
from tests.parity import official


@pytest.fixture(scope="module")
def tiny():
    hints = convert.Hints(num_heads=3, decoder_num_heads=2, normalize=True)
    return convert.load(official.path("mae_tiny.safetensors"), hints=hints)


@pytest.fixture(scope="module")
def encoder(tiny):
    return surgery.encoder_only(tiny)


def tokens(model, images):
    """All tokens behind the encoder, of float images [B, H, W, C]."""
    vit = VisionTransformer(**model.fields)
    patches = patchify(jnp.asarray(images, jnp.float32), model.fields["patch_size"])
    return np.asarray(vit.apply(model.variables(), patches, method=vit.encode))


def predictions(model, images):
    """What the autoencoder makes of images, a quarter of which is hidden: [B, L, ph * pw, C]."""
    mae = MaskedAutoencoder(**model.fields)
    noise = jnp.tile(jnp.arange(mae.grid[0] * mae.grid[1], dtype=jnp.float32), (len(images), 1))
    masked = masking.from_noise(noise, 0.25)
    patches = patchify(jnp.asarray(images, jnp.float32), mae.patch_size)
    visible = gather(patches, masked.ids_keep)
    out = mae.apply(model.variables(), visible, masked, method=mae.predict)
    return np.asarray(out).reshape(*out.shape[:2], -1, mae.channels)


def random_images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_the_encoder_alone_is_the_autoencoders(tiny, encoder):
    encoder.report.check()
    assert encoder.fields["num_classes"] == 0 and encoder.kind == "vit"
    images = random_images(2, 32, 32, 3)
    mae = MaskedAutoencoder(**tiny.fields)
    ids = jnp.tile(jnp.arange(64), (2, 1))
    patches = patchify(jnp.asarray(images), (4, 4))
    expected = mae.apply(tiny.variables(), patches, ids, method=mae.encode)
    np.testing.assert_allclose(tokens(encoder, images), expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=[2, 0], ids=["decoder", "linear head"])
def mask_tokens(request, tiny):
    """The autoencoder of table 1c, of the same encoder."""
    depth = request.param
    params = {n: x for n, x in tiny.params.items() if n != "mask_token"}
    params = {n: x for n, x in params.items() if depth or not n.startswith("decoder_blocks")}
    params["encoder_mask_token"] = random_images(1, 1, 48)
    fields = tiny.metadata["model"] | {"encoder_mask_tokens": True, "decoder_depth": depth}
    return dataclasses.replace(tiny, params=params, metadata=tiny.metadata | {"model": fields})


def test_the_encoder_with_mask_tokens_leaves_them_behind(mask_tokens, encoder):
    bare = surgery.encoder_only(mask_tokens)
    bare.report.check()
    assert bare.fields == encoder.fields and bare.params.keys() == encoder.params.keys()
    np.testing.assert_array_equal(
        *(tokens(model, random_images(1, 32, 32, 3)) for model in (bare, encoder))
    )


@pytest.mark.parametrize("name", ["out", "out.npz", "out.safetensors"])
def test_mask_tokens_of_the_encoder_go_out_and_come_in_again(mask_tokens, name, tmp_path):
    convert.save(mask_tokens, str(tmp_path / name))
    again = convert.load(str(tmp_path / name))
    again.report.check()
    assert again.fields == mask_tokens.fields
    for key, x in mask_tokens.params.items():
        np.testing.assert_array_equal(x, again.params[key], err_msg=key)


def test_a_file_without_metadata_shows_its_mask_tokens(mask_tokens, tmp_path):
    path, bare = str(tmp_path / "out.safetensors"), str(tmp_path / "bare.safetensors")
    convert.save(mask_tokens, path)
    save_file(load_file(path), bare)
    hints = convert.Hints(num_heads=3, decoder_num_heads=2, normalize=True)
    assert convert.load(bare, hints=hints).fields == mask_tokens.fields


def test_mask_tokens_of_the_encoder_are_nothing_for_hugging_face(mask_tokens, tmp_path):
    with pytest.raises(UsageError, match="no mask tokens in its encoder: use --format=hf_vit"):
        convert.save(mask_tokens, str(tmp_path / "out"), format="hf")
    convert.save(mask_tokens, str(tmp_path / "vit"), format="hf_vit")


def seen(model, images):
    """uint8 images as the model sees them: float, by its own mean and deviation."""
    mean, std = (np.array(model.metadata["data"][key], np.float32) for key in ("mean", "std"))
    return (images / np.float32(255) - mean) / std


def test_grey_images_are_seen_as_their_three_equal_channels(tiny, encoder):
    """With bytes, as users have them: each channel is normalized differently."""
    grey = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), dtype=np.uint8)
    three = np.repeat(grey, 3, axis=-1)
    one = surgery.with_channels(encoder, 1, "mean")
    one.report.check()
    expected = tokens(encoder, seen(encoder, three))
    np.testing.assert_allclose(tokens(one, seen(one, grey)), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(one.metadata["data"]["mean"], [np.mean([0.485, 0.456, 0.406])])
    assert tiny.metadata["data"]["mean"] == [0.485, 0.456, 0.406]  # untouched
    # Normalised patches: the mean of what is predicted of the three.
    one = surgery.with_channels(tiny, 1, "mean")
    one.report.check()
    expected = predictions(tiny, seen(tiny, three)).mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(predictions(one, seen(one, grey)), expected, rtol=0, atol=1e-5)
    # Raw pixels: the same in units of the pixels.
    target = {"target": {"kind": "pixel", "normalize": False}}
    raw = dataclasses.replace(tiny, metadata=tiny.metadata | target)
    one = surgery.with_channels(raw, 1, "mean")

    def pixels(model, images):
        mean, std = (np.array(model.metadata["data"][key]) for key in ("mean", "std"))
        return predictions(model, seen(model, images)) * std + mean

    expected = pixels(raw, three).mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(pixels(one, grey), expected, rtol=0, atol=1e-5)


def test_more_channels_repeat_the_kernels_at_the_same_total(tiny):
    six = surgery.with_channels(tiny, 6, "repeat")
    six.report.check()
    images = random_images(1, 32, 32, 3)
    out = predictions(six, np.tile(images, 2))
    expected = predictions(tiny, images)
    np.testing.assert_allclose(out, np.tile(expected, 2), rtol=0, atol=1e-5)
    assert six.metadata["data"]["std"] == [0.229, 0.224, 0.225] * 2


def test_channels_that_repeat_one_are_seen_as_their_mean(encoder):
    four = surgery.with_channels(encoder, 4, "repeat")
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 4), dtype=np.uint8)
    three = images.astype(np.float32)
    three[..., 0] = (three[..., 0] + three[..., 3]) / 2
    expected = tokens(encoder, seen(encoder, three[..., :3]))
    np.testing.assert_allclose(tokens(four, seen(four, images)), expected, rtol=0, atol=1e-5)


def test_selected_channels_are_as_they_were(tiny):
    two = surgery.with_channels(tiny, 2, "select:2,0")
    two.report.check()
    images = random_images(1, 32, 32, 3)
    images[..., 1] = 0  # what is left out adds nothing
    out = predictions(two, images[..., [2, 0]])
    np.testing.assert_allclose(out, predictions(tiny, images)[..., [2, 0]], rtol=0, atol=1e-5)
    swapped = surgery.with_channels(tiny, 3, "select:2,1,0")  # BGR images
    np.testing.assert_allclose(
        predictions(swapped, images[..., ::-1]),
        predictions(tiny, images)[..., ::-1],
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "policy,error",
    [
        ("error", "for 3 channels, but the model has 2"),
        ("select:0,1,2", "does not name 2 of the 3"),
        ("select:0,3", "does not name 2 of the 3"),
        ("average", "is not one of"),
        ("repeat", "2 channels cannot repeat 3"),
    ],
)
def test_channels_change_only_by_an_explicit_policy(tiny, policy, error):
    with pytest.raises(UsageError, match=error):
        surgery.with_channels(tiny, 2, policy)


def test_no_change_of_channels_is_no_change(tiny):
    assert surgery.with_channels(tiny, 3, "error") is tiny


def test_another_image_size(tiny, encoder):
    larger = surgery.with_image_size(encoder, (48, 64))
    larger.report.check()
    expected = resize_table(encoder.params["pos_embed"], (8, 8), (12, 16))
    np.testing.assert_array_equal(larger.params["pos_embed"], expected)
    assert larger.fields["image_size"] == (48, 64)
    mae = surgery.with_image_size(tiny, (48, 64))
    mae.report.check()
    table = with_tables(mae)["pos_embed"]
    np.testing.assert_array_equal(table[0], sincos_2d(48, (12, 16)).astype(np.float32))
    with pytest.raises(UsageError, match="30"):
        surgery.with_image_size(tiny, (30, 32))


def test_enlarged_patches_give_the_tokens_of_the_small_ones(tiny, encoder):
    """FlexiViT's condition (arXiv 2212.08013, section 3.4), patch by patch."""
    images = random_images(1, 32, 32, 3)
    larger = surgery.with_patch_size(encoder, (6, 5))
    larger.report.check()
    assert larger.fields["image_size"] == (48, 40) and larger.fields["patch_size"] == (6, 5)
    cells = images.reshape(8, 4, 8, 4, 3).transpose(0, 2, 4, 1, 3)
    resized = np.empty((8, 8, 3, 6, 5), np.float32)
    for index in np.ndindex(8, 8, 3):
        resized[index] = bicubic(4, 6) @ cells[index] @ bicubic(4, 5).T
    enlarged = resized.transpose(0, 3, 1, 4, 2).reshape(1, 48, 40, 3)
    np.testing.assert_allclose(tokens(larger, enlarged), tokens(encoder, images), atol=2e-5)
    with pytest.raises(UsageError, match="add --encoder_only"):
        surgery.with_patch_size(tiny, (6, 6))
    with pytest.raises(UsageError, match="smaller than"):
        surgery.with_patch_size(encoder, (2, 4))


def bicubic(old, new):
    """Rows of weights, by resizing every unit vector as a position table, which torch checks."""
    rows = []
    for i in range(old):
        table = np.zeros((1, 1 + old, 1))
        table[0, 1 + i] = 1
        rows.append(resize_table(table, (old, 1), (new, 1))[0, 1:, 0])
    return np.stack(rows, axis=1)


def official_classifier():
    path = official.path("vit_tiny_gp0.safetensors")
    return convert.load(path, hints=convert.Hints(num_heads=3))


def test_the_encoder_of_a_probe_has_no_batch_norm():
    model = official_classifier()
    probe = dataclasses.replace(
        model,
        statistics={f"batch_norm/{k}": np.ones(48, np.float32) for k in ("mean", "var")},
        metadata=model.metadata | {"model": model.metadata["model"] | {"head_norm": True}},
    )
    encoder = surgery.encoder_only(probe)
    encoder.report.check()
    assert not encoder.statistics and not encoder.fields["head_norm"]
    assert surgery.fold_batch_norm(encoder) is encoder


def test_fc_norm_is_the_norm_behind_the_mean(encoder):
    model = surgery.with_fc_norm(encoder)
    model.report.check()
    assert model.fields["pool"] == "mean"
    np.testing.assert_array_equal(model.params["fc_norm/scale"], encoder.params["norm/scale"])
    assert timm.config(model)["global_pool"] == "avg"
    with pytest.raises(UsageError, match="only without decoder and head"):
        surgery.with_fc_norm(official_classifier())
    assert timm.config(encoder)["global_pool"] == "token"


def test_a_real_size_is_named_as_in_timm():
    """The arguments of timm's own vit_huge_patch14_224, and no others."""
    metadata = {
        "model": {
            "kind": "vit", "size": "H", "image_size": (224, 224), "patch_size": (14, 14),
            "channels": 3, "embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_ratio": 4.0,
            "num_classes": 0, "pool": "cls",
        },
        "data": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "classes": None,
    }  # fmt: skip
    report = convert.LoadReport("", 0, 0, [], [], [], [])
    config = timm.config(convert.Weights({}, {}, metadata, report))
    assert config["architecture"] == "vit_huge_patch14_224"
    assert config["model_args"]["patch_size"] == 14 and config["num_features"] == 1280
    assert config["pretrained_cfg"]["input_size"] == [3, 224, 224]
