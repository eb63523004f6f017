"""The Python interface for notebooks: load, features, reconstruct."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import mae_jax
from mae_jax import convert, inference
from mae_jax.convert import surgery
from mae_jax.models.targets import pixel
from mae_jax.models.vit import VisionTransformer
from mae_jax.ops.patches import patch_means, patchify, to_float
from mae_jax.runtime.errors import UsageError
from tests.helpers.processes import REPO
from tests.parity import official

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The official tiny models as folders of weights."""
    root = tmp_path_factory.mktemp("weights")
    for name, file, hints in (
        ("pixels", "mae_tiny", convert.Hints(3, 2, normalize=False)),
        ("normalized", "mae_tiny", convert.Hints(3, 2, normalize=True)),
        ("cls", "vit_tiny_gp0", convert.Hints(3)),
        ("mean", "vit_tiny_gp1", convert.Hints(3)),
    ):
        model = convert.load(official.path(f"{file}.safetensors"), hints=hints)
        convert.save(model, str(root / name))
    return root


@pytest.fixture(scope="module")
def mae(folder):
    return inference.load(str(folder / "normalized"))


@pytest.fixture(scope="module")
def images():
    """uint8 [B, H, W, C]."""
    return official.arrays("mae_tiny_r75_npl1.npz")["imgs_u8"]


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_features_are_those_of_the_official_classifier(folder, pool):
    ref = official.arrays(f"vit_tiny_gp{int(pool == 'mean')}.npz")
    model = inference.load(str(folder / pool))
    pixels = ref["imgs"].transpose(0, 2, 3, 1) * np.float32(STD) + np.float32(MEAN)
    found = model.features(pixels, pool=pool, batch_size=2)
    np.testing.assert_allclose(found, ref["features"], rtol=0, atol=1e-5)


def test_poolings_and_layers_of_an_autoencoder(mae, images):
    every = mae.features(images, pool="patches")
    assert every.shape == (len(images), 64, 48)
    np.testing.assert_allclose(mae.features(images), every.mean(axis=1), rtol=0, atol=1e-6)
    one_by_one = mae.features(images, pool="patches", batch_size=1)
    np.testing.assert_allclose(one_by_one, every, rtol=0, atol=1e-5)
    # Compared with hidden states that Flax records; the class token is first.
    encoder = surgery.encoder_only(convert.load(mae._path))
    vit = VisionTransformer(**encoder.fields)
    patches = to_float(patchify(images, (4, 4)), MEAN, STD)
    final, recorded = vit.apply(
        encoder.variables(), patches, method=vit.encode, capture_intermediates=True
    )
    np.testing.assert_allclose(every, final[:, 1:], rtol=0, atol=1e-5)
    for layer, block in ((0, 0), (1, 1), (-2, 1), (-3, 0)):
        expected = recorded["intermediates"][f"blocks_{block}"]["__call__"][0]
        found = mae.features(images, pool="patches", layer=layer)
        np.testing.assert_allclose(found, expected[:, 1:], rtol=0, atol=1e-5)
        found = mae.features(images, pool="cls", layer=layer)
        np.testing.assert_allclose(found, expected[:, 0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(mae.features(images, layer=2), mae.features(images))


@pytest.mark.parametrize("name", ["pixels", "normalized"])
def test_reconstruction_is_the_official_prediction(folder, images, name):
    ref = official.arrays(f"mae_tiny_r75_npl{int(name == 'normalized')}.npz")
    model = inference.load(str(folder / name))
    views = model.reconstruct(images, mask=ref["mask"])
    patches = np.asarray(to_float(patchify(images, (4, 4)), MEAN, STD))
    pred = ref["pred"]
    if name == "normalized":
        pred = np.asarray(pixel.undo_normalize(pred, patches))
    shape = (*pred.shape[:2], 16, 3)
    pixels = pred.reshape(shape) * np.float32(STD) + np.float32(MEAN)
    found = np.asarray(patchify(views.predicted, (4, 4))).reshape(shape)
    np.testing.assert_allclose(found, pixels, rtol=0, atol=2e-5)
    hidden = ref["mask"].astype(bool)
    pasted = np.asarray(patchify(views.pasted, (4, 4))).reshape(shape)
    original = np.asarray(patchify(images, (4, 4))).reshape(shape) / 255
    np.testing.assert_allclose(pasted[hidden], pixels[hidden], rtol=0, atol=2e-5)
    np.testing.assert_allclose(pasted[~hidden], original[~hidden], rtol=0, atol=1e-6)


def hidden_patches(views):
    """bool [B, L]: patches that are gray in `masked`."""
    return (np.abs(np.asarray(patchify(views.masked, (4, 4))) - 0.5) < 1e-6).all(axis=2)


def test_masks_by_ratio_seed_and_hand(mae, images):
    first = hidden_patches(mae.reconstruct(images, seed=3))
    assert (first.sum(axis=1) == 48).all()  # three quarters, as in training
    np.testing.assert_array_equal(first, hidden_patches(mae.reconstruct(images, seed=3)))
    assert (first != hidden_patches(mae.reconstruct(images, seed=4))).any()
    half = hidden_patches(mae.reconstruct(images, mask_ratio=0.5))
    assert (half.sum(axis=1) == 32).all()
    mask = np.zeros((8, 8), int)
    mask[2:5, 1:7] = 1
    for given in (mask, mask.reshape(-1), np.tile(mask, (len(images), 1, 1))):
        found = hidden_patches(mae.reconstruct(images, mask=given))
        np.testing.assert_array_equal(found, np.tile(mask.reshape(-1), (len(images), 1)))


def test_masks_by_kind_and_priority(mae, images):
    grid = hidden_patches(mae.reconstruct(images, mask_kind="grid")).reshape(-1, 8, 8)
    assert not grid[:, ::2, ::2].any() and grid.sum() == len(images) * 48
    # One patch is brighter than all others, one is darker.
    bright = np.full((len(images), 32, 32), 0.5)
    bright[:, 4:8, 8:12], bright[:, 28:, 28:] = 0.9, 0.1
    for priority in (patch_means(bright, (4, 4)), np.asarray(patch_means(bright, (4, 4)))[0]):
        views = mae.reconstruct(images, priority=priority, mask_ratio=1 / 64)
        assert (hidden_patches(views) == (np.arange(64) == 8 + 2)).all()
        views = mae.reconstruct(images, priority=priority, mask_ratio=63 / 64)
        assert (hidden_patches(views) == (np.arange(64) != 63)).all()
        half = hidden_patches(mae.reconstruct(images, priority=priority, mask_ratio=0.5, seed=1))
        assert (half.sum(axis=1) == 32).all() and half[:, 10].all() and not half[:, 63].any()
        assert len(np.unique(half, axis=0)) == len(images)  # ties


def test_bad_calls_are_explained(folder, mae, images):
    for call, error in (
        (lambda: mae.features(images[:, :16]), r"the model takes \[N, 32, 32, 3\]"),
        (lambda: mae.features(images[:0]), r"the model takes"),
        (lambda: mae.features(images, pool="max"), "--pool=max is not one of"),
        (lambda: mae.features(images.astype(np.int64)), "images of int64"),
        (lambda: mae.features(images.astype(np.float32)), "divide by 255"),
        (lambda: mae.features(images, batch_size=0), "batch_size=0"),
        (lambda: mae.reconstruct(images, mask_ratio=0), "hides no patch"),
        (lambda: mae.reconstruct(images, mask=np.ones(64), mask_ratio=0.5), "leave out ratio"),
        (lambda: mae.reconstruct(images, mask=np.ones((4, 16))), r"the mask is \(4, 16\)"),
        (
            lambda: mae.features(images, layer=3),
            r"layer 3 does not exist: the model has 3 blocks \(0 to 2, or -3 to -1\)",
        ),
        (lambda: mae.reconstruct(images, mask_ratio=1.5), "mask ratio 1.5"),
        (lambda: mae.reconstruct(images, mask=np.ones(9)), r"the mask is \(9,\)"),
        (lambda: mae.reconstruct(images, mask=np.ones(64)), "must hide some of the 64"),
        (lambda: mae.reconstruct(images, mask=np.full(64, 0.5)), "only 1 .masked. and 0"),
        (lambda: mae.reconstruct(images, mask_kind="spiral"), "--mask_kind=spiral"),
        (
            lambda: mae.reconstruct(images, mask_kind="grid", mask_ratio=0.5),
            r"16 of 64, not 32: its mask ratio is 0.75 \(--mask_ratio=0.5\)",
        ),
        (lambda: mae.reconstruct(images, priority=np.ones(9)), r"the priority is \(9,\)"),
        (
            lambda: mae.reconstruct(images, priority=np.full(64, np.nan)),
            "priority must be finite",
        ),
        (lambda: mae.reconstruct(images, priority=np.ones(64), mask_kind="block"), "the kind"),
        (lambda: mae.reconstruct(images, priority=np.ones(64), mask=np.ones(64)), "leave out"),
        (
            lambda: mae.reconstruct(images[:2], mask=np.stack([np.arange(64) < n for n in (3, 4)])),
            "the same number in every image",
        ),
        (lambda: inference.load(str(folder / "cls")).reconstruct(images), "no decoder weights in"),
        (lambda: mae.load_images(["gone.png"]), "gone.png"),
        (lambda: mae.load_images([]), "no image files"),
    ):
        with pytest.raises(UsageError, match=error):
            call()


def test_files_become_images_of_the_models_size(mae, tmp_path):
    Image.new("RGB", (50, 40), (255, 0, 0)).save(tmp_path / "a.png")
    images = mae.load_images([str(tmp_path / "a.png")])
    assert images.shape == (1, 32, 32, 3) and images.dtype == np.uint8
    assert mae.features(images).shape == (1, 48)


def test_images_of_a_folder_a_pattern_or_a_list(mae, tmp_path):
    colors = {"b/2.png": 10, "a/1.png": 60, "a/3.jpg": 200}
    for name, level in colors.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (level,) * 3).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "list.txt").write_text("b/2.png\na/1.png\n")
    for files, levels in (
        (tmp_path, [60, 200, 10]),  # everything below it, sorted
        (str(tmp_path), [60, 200, 10]),
        (f"{tmp_path}/*/*.png", [60, 10]),
        (f"{tmp_path}/list.txt", [10, 60]),  # in its own order
        (tmp_path / "b" / "2.png", [10]),
        ([tmp_path / "b" / "2.png", f"{tmp_path}/a/1.png"], [10, 60]),
    ):
        found = mae.load_images(files)
        assert found.mean(axis=(1, 2, 3)).tolist() == pytest.approx(levels, abs=1), files
    with pytest.raises(UsageError, match="nothing"):
        mae.load_images(str(tmp_path / "nothing*"))


def test_repr_summarizes_the_model(mae, folder):
    assert repr(mae) == (
        f"<Pretrained {folder}/normalized: ViT-{mae.metadata['model']['size']}: 3 blocks of width "
        "48, 3 heads, images 32x32x3, patches 4x4; decoder of 2 blocks, target normalized patches>"
    )
    classifier = repr(inference.load(str(folder / "mean")))
    assert "classes, pool mean>" in classifier and "decoder" not in classifier


def test_load_is_an_attribute_of_the_package_which_imports_nothing_heavy():
    assert mae_jax.load is inference.load
    assert "load" in dir(mae_jax) and not hasattr(mae_jax, "lode")
    code = "import mae_jax, sys; assert not {'jax', 'numpy', 'absl'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": REPO})


def test_an_incomplete_model_is_refused(folder, tmp_path):
    model = convert.load(str(folder / "cls"))
    del model.params["norm/bias"]
    model.metadata["missing"] = ["norm/bias"]
    convert.save(model, str(tmp_path / "part"))
    with pytest.raises(UsageError, match="missing .'norm/bias'"):
        inference.load(str(tmp_path / "part"))
