"""Weights in and out, of files that the official code, Hugging Face and torch wrote."""

import dataclasses
import json
import os
import pathlib
import resource
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mae_jax import convert
from mae_jax.convert import hugging_face, infer_architecture, official_release, surgery
from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.models.pos_embed import sincos_2d
from mae_jax.models.vit import VisionTransformer
from mae_jax.ops import masking
from mae_jax.ops.patches import gather, patchify
from mae_jax.runtime import disk
from mae_jax.runtime.errors import RunError, UsageError
from tests.parity import official

TINY = convert.Hints(num_heads=3, decoder_num_heads=2, normalize=True)
CLASSIFIER = convert.Hints(num_heads=3)
PATHS = {"mae": "out", "hf": "out", "hf_vit": "out", "timm": "out", "npz": "out.npz",
         "official": "out.safetensors"}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_mae():
    return convert.load(official.path("mae_tiny.safetensors"), hints=TINY)


def classifier(pool="cls"):
    path = official.path(f"vit_tiny_gp{int(pool == 'mean')}.safetensors")
    return convert.load(path, hints=CLASSIFIER)


def same(one, other):
    assert one.params.keys() == other.params.keys()
    for name, x in one.params.items():
        np.testing.assert_array_equal(x, other.params[name], err_msg=name, strict=True)


def test_the_official_autoencoder_computes_what_it_did(tiny_mae):
    ref = official.arrays("mae_tiny_r75_npl1.npz")
    tiny_mae.report.check()
    assert tiny_mae.fields == official.TINY | {"mlp_ratio": 4.0}
    model = MaskedAutoencoder(**tiny_mae.fields)
    masked = masking.from_noise(jnp.asarray(ref["noise"]), 0.75)
    visible = gather(
        patchify(jnp.asarray(ref["imgs"].transpose(0, 2, 3, 1)), (4, 4)), masked.ids_keep
    )
    variables = tiny_mae.variables()
    latent = model.apply(variables, visible, masked.ids_keep, method=model.encode)
    np.testing.assert_allclose(latent, ref["latent"], rtol=0, atol=1e-5)
    pred = model.apply(variables, visible, masked, method=model.predict)
    np.testing.assert_allclose(pred, ref["pred"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_official_classifier_computes_what_it_did(pool):
    ref, model = official.arrays(f"vit_tiny_gp{int(pool == 'mean')}.npz"), classifier(pool)
    model.report.check()
    assert model.fields["pool"] == pool and model.fields["num_classes"] == 10
    patches = patchify(jnp.asarray(ref["imgs"].transpose(0, 2, 3, 1)), (4, 4))
    logits = VisionTransformer(**model.fields).apply(model.variables(), patches)
    np.testing.assert_allclose(logits, ref["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", PATHS)
def test_out_and_in_again_is_exact(tiny_mae, tmp_path, format):
    path = str(tmp_path / PATHS[format])
    left = tmp_path / f".{PATHS[format]}.tmp"  # by a process that was killed
    left.mkdir()
    (left / PATHS[format]).write_text("half")
    convert.save(tiny_mae, path, format=format)
    assert len(os.listdir(tmp_path)) == 1
    for written in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert written.stat().st_mode & 0o444 == 0o444  # for colleagues too
    again = convert.load(
        path, hints=TINY if format in ("mae", "hf", "npz", "official") else CLASSIFIER
    )
    again.report.check()
    if format in ("hf_vit", "timm"):
        tiny_mae = surgery.encoder_only(tiny_mae)
    same(tiny_mae, again)
    assert again.kind == tiny_mae.kind and again.fields == tiny_mae.fields
    assert again.metadata["data"]["mean"] == tiny_mae.metadata["data"]["mean"]
    if again.kind == "mae":
        assert again.metadata["target"] == tiny_mae.metadata["target"]
    with pytest.raises(UsageError, match="exists: remove it"):
        convert.save(tiny_mae, path, format=format)


@pytest.mark.parametrize("format", PATHS)
def test_a_disk_without_room_is_one_line_and_nothing_stays(tiny_mae, tmp_path, monkeypatch, format):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file longer than this
    try:
        with pytest.raises(RunError, match=r"cannot be written: (No space|File too large)"):
            convert.save(tiny_mae, str(tmp_path / PATHS[format]), format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("format", ["mae", "timm", "official", "npz", "hf_vit"])
def test_a_classifier_out_and_in_again_is_exact(tmp_path, format, pool):
    names = [f"class {i}" for i in range(10)]
    path = official.path(f"vit_tiny_gp{int(pool == 'mean')}.safetensors")
    model = convert.load(path, hints=CLASSIFIER._replace(classes=names))
    out = str(tmp_path / PATHS[format])
    if format == "hf_vit" and pool == "mean":
        with pytest.raises(UsageError, match="use --format=timm"):
            convert.save(model, out, format=format)
        assert not os.path.exists(out)
        return
    convert.save(model, out, format=format)
    again = convert.load(out)
    again.report.check()
    same(model, again)
    assert again.metadata["classes"] == names and again.fields["pool"] == pool


def test_a_probe_keeps_its_statistics_or_has_them_folded_in(tmp_path):
    rng = np.random.default_rng(0)
    model = classifier()
    statistics = {
        "batch_norm/mean": rng.normal(size=48).astype(np.float32),
        "batch_norm/var": rng.uniform(0.5, 2, 48).astype(np.float32),
    }
    metadata = model.metadata | {"model": model.metadata["model"] | {"head_norm": True}}
    probe = dataclasses.replace(model, statistics=statistics, metadata=metadata)
    patches = patchify(jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32), (4, 4))

    def logits(model):
        return VisionTransformer(**model.fields).apply(model.variables(), patches)

    expected = logits(probe)
    assert np.abs(expected - logits(model)).max() > 0.1
    for name, format in (("a", "mae"), ("a.npz", "npz"), ("a.safetensors", "official")):
        convert.save(probe, str(tmp_path / name), format=format)
        again = convert.load(str(tmp_path / name))
        for key, x in statistics.items():
            np.testing.assert_array_equal(again.statistics[key], x)
        np.testing.assert_array_equal(logits(again), expected)
    keys = load_file(tmp_path / "a.safetensors")
    assert "head.0.running_mean" in keys and "head.1.weight" in keys
    for format in ("timm", "hf_vit"):
        convert.save(probe, str(tmp_path / format), format=format)
        folded = convert.load(str(tmp_path / format))
        folded.report.check()
        np.testing.assert_allclose(logits(folded), expected, rtol=0, atol=1e-5)


def test_hugging_face_folders(tiny_mae):
    for folder in ("hf_tiny_v4names", "hf_tiny_saved_by_5_23"):
        model = convert.load(official.path(folder))
        model.report.check()
        assert model.report.matched == model.report.wanted == 74
        same(model, tiny_mae)
        assert model.metadata["target"]["normalize"] is False
        assert model.report.notes == [
            "mean: assumed (0.485, 0.456, 0.406)",
            "std: assumed (0.229, 0.224, 0.225)",
        ]
        assert model.metadata["mask"]["ratio"] == 0.75


def test_hugging_face_config_files(tiny_mae, tmp_path):
    folder = tmp_path / "hf"
    convert.save(tiny_mae, str(folder), format="hf")
    ours = json.loads((folder / "config.json").read_text())
    theirs = json.loads(pathlib.Path(official.path("hf_tiny_v4names/config.json")).read_text())
    assert ours["norm_pix_loss"] is True and ours["layer_norm_eps"] == 1e-6
    assert "transformers_version" in theirs and theirs.keys() - ours.keys() == {
        "transformers_version"
    }
    differ = {key for key in theirs.keys() & ours.keys() if ours[key] != theirs[key]}
    assert differ == {"norm_pix_loss"}
    pixels = json.loads((folder / "preprocessor_config.json").read_text())
    assert pixels["image_mean"] == [0.485, 0.456, 0.406] and pixels["resample"] == 3
    assert pixels["size"] == {"height": 32, "width": 32}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\n") and "normalized patches" in card
    arrays = load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(
        arrays["decoder.decoder_pos_embed"][0], sincos_2d(32, (8, 8)).astype(np.float32)
    )
    with pytest.raises(UsageError, match="square image_size"):
        fields = tiny_mae.metadata["model"] | {"image_size": (32, 16)}
        hugging_face.mae_config(
            dataclasses.replace(tiny_mae, metadata=tiny_mae.metadata | {"model": fields})
        )


def test_a_file_of_the_official_training_script():
    model = convert.load(
        official.path("micro_training.pth"), hints=convert.Hints(num_heads=2, decoder_num_heads=1)
    )
    model.report.check()
    assert model.report.matched == 38 and model.report.kind == "pth"
    assert model.metadata["target"]["normalize"] is True  # as its arguments say
    assert model.metadata["mask"]["ratio"] == 0.5
    assert model.fields["image_size"] == (8, 8)
    assert not any("guessed" in note for note in model.report.notes)
    assert model.metadata["provenance"]["file"] == "micro_training.pth"
    with pytest.raises(UsageError, match="--norm_pix_loss: the file says True, not False"):
        convert.load(
            official.path("micro_training.pth"),
            hints=convert.Hints(num_heads=2, decoder_num_heads=1, normalize=False),
        )


def test_sizes_that_no_shape_tells_must_be_said():
    with pytest.raises(UsageError, match=r"mae_tiny.*encoder .*width 48.*--num_heads"):
        convert.load(official.path("mae_tiny.safetensors"))
    with pytest.raises(UsageError, match="--num_heads=5 does not divide"):
        convert.load(official.path("mae_tiny.safetensors"), hints=TINY._replace(num_heads=5))
    with pytest.raises(
        UsageError, match="--num_heads, --config.model.num_heads: the file says 3, not 4"
    ):
        convert.load(official.path("hf_tiny_v4names"), hints=convert.Hints(num_heads=4))


def change(tmp_path, changes, name="mae_tiny.safetensors"):
    """A copy of an official file with some arrays replaced (None: removed)."""
    arrays = load_file(official.path(name)) | changes
    path = str(tmp_path / "changed.safetensors")
    save_file({k: x for k, x in arrays.items() if x is not None}, path)
    return path


def tables(dim, decoder_dim, grid):
    return {
        "pos_embed": sincos_2d(dim, grid)[None].astype(np.float32),
        "decoder_pos_embed": sincos_2d(decoder_dim, grid)[None].astype(np.float32),
    }


def test_the_grid_is_read_from_the_fixed_table_and_never_guessed(tmp_path):
    path = change(tmp_path, tables(48, 32, (4, 16)))
    model = convert.load(path, hints=TINY)
    assert model.fields["image_size"] == (16, 64)
    assert not any("grid" in note for note in model.report.notes)
    # The table that decides is the file's, whatever the user thinks.
    with pytest.raises(UsageError, match="not the fixed sine-cosine table of a 8x8 grid"):
        convert.load(path, hints=TINY._replace(image_size=(32, 32)))
    learnt = np.random.default_rng(0).normal(size=(1, 61, 48)).astype(np.float32)
    path = change(tmp_path, {"pos_embed": learnt}, "vit_tiny_gp0.safetensors")
    with pytest.raises(UsageError, match="60 positions are not a square: give --image_size"):
        convert.load(path, hints=CLASSIFIER)
    model = convert.load(path, hints=CLASSIFIER._replace(image_size=(24, 40)))
    assert model.fields["image_size"] == (24, 40)
    with pytest.raises(UsageError, match="8 patches, but the position table has 60"):
        convert.load(path, hints=CLASSIFIER._replace(image_size=(8, 16)))
    square = classifier()
    assert any("assumed that 64 positions are a 8x8 grid" in n for n in square.report.notes)


def test_an_autoencoder_with_other_tables_gives_only_its_encoder(tmp_path):
    learnt = np.random.default_rng(0).normal(size=(1, 65, 48)).astype(np.float32)
    path = change(tmp_path, {"pos_embed": learnt})
    with pytest.raises(UsageError, match="--encoder_only keeps it"):
        convert.load(path, hints=TINY._replace(image_size=(32, 32)))
    encoder = convert.load(path, hints=CLASSIFIER, decoder=False)
    encoder.report.check()
    assert encoder.kind == "vit" and encoder.fields["num_classes"] == 0
    np.testing.assert_array_equal(encoder.params["pos_embed"], learnt)


def test_whatever_does_not_match_is_an_error_unless_it_is_named(tmp_path):
    path = change(
        tmp_path,
        {
            "norm.bias": None,
            "blocks.1.norm1.weight": np.ones(7, np.float32),
            "blocks.0.ls1.gamma": np.ones(48, np.float32),
            "decoder_pos_embed": None,
        },
    )
    report = convert.load(path, hints=TINY).report
    assert (report.matched, report.wanted) == (71, 74)
    assert report.missing == ["norm/bias", "decoder_pos_embed"] and report.unused == [
        "blocks.0.ls1.gamma"
    ]
    assert report.wrong == ["blocks_1/norm1/scale is (7,), needed (48,)"]
    for allowed in ({}, {"allow_missing": ["norm/*"]}, {"allow_unused": ["*ls1*"]}):
        with pytest.raises(UsageError, match=r"do not fit: .*needed \(48,\)"):
            report.check(**allowed)
    fits = report._replace(wrong=[])
    fits.check(allow_missing=["norm/*", "*pos_embed"], allow_unused=["*.ls1.*"])
    with pytest.raises(UsageError, match="missing .'decoder_pos_embed'.*--allow_missing"):
        fits.check(allow_missing=["norm/*"], allow_unused=["*.ls1.*"])


def test_target_is_guessed_from_the_prediction_layer_or_the_name(tmp_path, tiny_mae):
    silent = TINY._replace(normalize=None)
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(48, 32)).astype(np.float32)  # torch's layout: [pixels, width]
    raw = kernel + 3 * rng.normal(size=(1, 32)).astype(np.float32)  # much into the mean
    centred = kernel - kernel.mean(axis=0)
    for weights, normalized in ((raw, False), (centred, True)):
        path = change(tmp_path, {"decoder_pred.weight": weights})
        model = convert.load(path, hints=silent)
        assert model.metadata["target"]["normalize"] is normalized
        assert any("guessed" in note for note in model.report.notes)
    assert infer_architecture.mean_preference(np.ones((3, 48))) == pytest.approx(48)
    assert official_release.normalized_target("x/mae_visualize_vit_large.pth") is False
    assert official_release.normalized_target("mae_pretrain_vit_base_full.pth") is True
    assert official_release.normalized_target("my.pth") is None


def test_released_files_are_known_by_their_sum_and_carry_their_licence(tmp_path, monkeypatch):
    path = tmp_path / "mae_visualize_vit_base.safetensors"
    shutil.copy(official.path("mae_tiny.safetensors"), path)
    for size, license in (("B", "cc-by-nc-4.0"), ("L", "unknown"), ("custom", "unknown")):
        origin = official_release.provenance(
            str(path), size=size
        )  # of unknown sum: by name and size
        assert origin["license"] == license and ("released" in origin) == (size == "B")
    other = tmp_path / "mae_pretrain_vit_base.safetensors"  # whose sum is known, and is not this
    shutil.copy(path, other)
    origin = convert.load(str(other), hints=TINY).metadata["provenance"]
    assert origin["license"] == "unknown" and "released" not in origin
    monkeypatch.setitem(official_release._MD5, "mae_pretrain_vit_base", origin["md5"][:6])
    model = convert.load(official.path("mae_tiny.safetensors"), hints=TINY)  # whatever its name
    assert model.metadata["provenance"]["released"] == "mae_pretrain_vit_base"
    convert.save(model, str(tmp_path / "hf"), format="hf")
    assert "license: cc-by-nc-4.0" in (tmp_path / "hf" / "README.md").read_text()
    again = convert.load(str(tmp_path / "hf"))
    assert again.metadata["provenance"]["license"] == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    "changes,error",
    [
        ({"decoder_pred.weight": None}, "decoder is incomplete"),
        ({"decoder_embed.bias": None, "decoder_norm.bias": None}, "decoder is incomplete"),
        ({"pos_embed": np.zeros((65, 48), np.float32)}, r"pos_embed has shape \(65, 48\)"),
        ({"patch_embed.proj.weight": np.zeros((48, 3, 2, 4, 4), np.float32)}, "4 axes"),
        ({"encoder_to_decoder.weight": np.zeros((32, 48), np.float32)}, "twice"),
    ],
)
def test_files_that_are_nearly_right_are_explained(tmp_path, changes, error):
    with pytest.raises(UsageError, match=error):
        convert.load(change(tmp_path, changes), hints=TINY)


@pytest.mark.parametrize("name", ["mask_token", "blocks.0.mlp.fc1.bias", "cls_token"])
def test_what_is_missing_is_reported_not_stumbled_over(tmp_path, name):
    report = convert.load(change(tmp_path, {name: None}), hints=TINY).report
    assert report.missing == [name.replace(".", "_", 1).replace(".", "/")]


def test_a_file_of_mae_pytorch_gives_only_its_encoder(tmp_path):
    """It has no class token and no position table in it, and its positions are other ones."""
    arrays = {}
    for name, x in load_file(official.path("mae_tiny.safetensors")).items():
        if name not in ("cls_token", "mask_token") and not name.startswith(
            ("decoder", "pos_embed")
        ):
            arrays[f"encoder.{name}"] = x
    arrays["encoder_to_decoder.weight"] = np.zeros((32, 48), np.float32)
    path = str(tmp_path / "pz.safetensors")
    save_file(arrays, path)
    hints = CLASSIFIER._replace(image_size=(32, 32))
    with pytest.raises(UsageError, match="MAE-pytorch: its position table differs"):
        convert.load(path, hints=hints)
    report = convert.load(path, hints=hints, decoder=False).report
    assert report.missing == ["cls_token", "pos_embed"] and not report.unused


def test_hugging_faces_own_names_of_classes_are_none(tmp_path):
    model = classifier()
    convert.save(model, str(tmp_path / "hf"), format="hf_vit")
    assert convert.load(str(tmp_path / "hf")).metadata["classes"] is None


def test_names_of_classes_are_added_where_there_are_none(tmp_path):
    convert.save(classifier(), str(tmp_path / "w"))
    names = [f"name {i}" for i in range(10)]
    model = convert.load(str(tmp_path / "w"), hints=convert.Hints(classes=names))
    assert model.metadata["classes"] == names
    with pytest.raises(UsageError, match="3 class names for a head of 10"):
        convert.load(str(tmp_path / "w"), hints=convert.Hints(classes=names[:3]))
    convert.save(model, str(tmp_path / "named"))
    with pytest.raises(UsageError, match="--classes: the file says other names"):
        convert.load(str(tmp_path / "named"), hints=convert.Hints(classes=names[::-1]))


def test_half_precision_is_widened(tmp_path):
    arrays = load_file(official.path("vit_tiny_gp0.safetensors"))
    path = str(tmp_path / "half.safetensors")
    save_file({name: x.astype(jnp.bfloat16) for name, x in arrays.items()}, path)
    model = convert.load(path, hints=CLASSIFIER)
    assert {x.dtype for x in model.params.values()} == {np.dtype(np.float32)}
    expected = arrays["norm.bias"].astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(model.params["norm/bias"], expected)
    arrays = load_file(official.path("mae_tiny.safetensors"))
    for kind in (jnp.bfloat16, np.float16):  # their tables are rounded too
        save_file({name: x.astype(kind) for name, x in arrays.items()}, path)
        convert.load(path, hints=TINY).report.check()


@pytest.mark.parametrize(
    "name,config,error",
    [
        ("clip", {"model_type": "clip"}, "a model of type 'clip'"),
        ("relu", {"model_type": "vit", "hidden_act": "relu"}, "hidden_act='relu'"),
        ("gone", {"model_type": "vit"}, "config.json"),
    ],
)
def test_foreign_folders_are_refused(tmp_path, name, config, error):
    shutil.copy(official.path("vit_tiny_gp0.safetensors"), tmp_path / "model.safetensors")
    if name != "gone":
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=error):
        convert.load(str(tmp_path))


def test_what_is_no_weights_is_said_so(tmp_path):
    save_file({"x": np.zeros(3)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"no")
    (tmp_path / "c.npz").write_bytes(b"no")
    (tmp_path / "empty.npz").write_bytes(b"")
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    np.savez(tmp_path / "cut.npz", x=np.zeros(1000))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:600])
    for name, error in (
        ("a.safetensors", "not the weights of a ViT"),
        ("b.safetensors", "b.safetensors cannot be read"),
        ("c.npz", "c.npz cannot be read"),
        ("empty.npz", "empty.npz cannot be read"),
        ("array.npz", "array.npz cannot be read"),
        ("cut.npz", "cut.npz cannot be read"),
        ("d.pth", "no file or folder"),
        ("e", "no checkpoint under"),
    ):
        with pytest.raises(UsageError, match=error):
            convert.load(str(tmp_path / name))


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_keys_of_an_earlier_version_have_their_present_names(tmp_path, name):
    model = convert.load(official.path("mae_tiny.safetensors"), hints=TINY)
    model.metadata["config"] |= {"picture_every": 5}
    model.metadata["config"]["data"]["resident"] = False
    convert.save(model, str(tmp_path / name))
    config = convert.load(str(tmp_path / name)).metadata["config"]
    assert config["figure_every"] == 5 and "picture_every" not in config
    assert config["data"]["on_device"] is False and "resident" not in config["data"]
