"""What we write is read by the real libraries, and computes there what it computes here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mae_jax import convert, inference
from mae_jax.convert import surgery, torch_pickle
from mae_jax.models import mae as mae_module
from mae_jax.models import vit as vit_module
from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.models.targets import pixel
from mae_jax.models.vit import VisionTransformer
from mae_jax.ops import masking
from mae_jax.ops.patches import gather, patchify, to_float
from mae_jax.ops.trees import flatten
from tests.parity import official

pytestmark = pytest.mark.interop
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def spread(params, seed):
    """Random parameters, away from where they start: biases from 0, norms from 1."""
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(x) + rng.normal(0, 0.02, x.shape).astype(np.float32)
        for name, x in flatten(params).items()
    }


def tiny():
    hints = convert.Hints(num_heads=3, decoder_num_heads=2, normalize=True)
    return convert.load(official.path("mae_tiny.safetensors"), hints=hints)


def vit_b():
    """A ViT-B/16 autoencoder with random weights, at its real size."""
    fields = {
        "image_size": (224, 224), "patch_size": (16, 16), "channels": 3,
        "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0,
        "decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16,
    }  # fmt: skip
    model = MaskedAutoencoder(**fields)
    params = spread(mae_module.init_params(model, jax.random.key(0)), 1)
    metadata = tiny().metadata | {"model": {"kind": "mae", "size": "B", **fields}}
    report = convert.model.make_report(params, metadata, kind="made here")
    return convert.Weights(params, {}, metadata, report)


def classifier(pool):
    """A tiny classifier of seven named classes, with all parameters away from where they start."""
    fields = {k: v for k, v in official.TINY.items() if not k.startswith("decoder")}
    fields |= {"mlp_ratio": 4.0, "num_classes": 7, "pool": pool, "head_std": 0.02,
               "head_norm": False, "head_norm_group": 0, "drop_path": 0.0}  # fmt: skip
    model = VisionTransformer(**fields)
    params = spread(vit_module.init_variables(model, jax.random.key(0))[0], 2)
    metadata = tiny().metadata | {
        "model": {"kind": "vit", "size": "custom", **fields},
        "classes": [f"name {i}" for i in range(7)],
    }
    report = convert.model.make_report(params, metadata, kind="made here")
    return convert.Weights(params, {}, metadata, report)


MODELS = {"tiny": tiny, "ViT-B/16": vit_b}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def pixels(model, number=2):
    """uint8 images, and the same normalised as torch wants them."""
    shape = (number, *model.fields["image_size"], model.fields["channels"])
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    floats = (images / 255 - np.array(MEAN)) / np.array(STD)
    return images, floats.transpose(0, 3, 1, 2).astype(np.float32)


def close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=0, atol=1e-4)


def load_strictly(kind, folder, **more):
    """The library's model; nothing missing, unexpected or of another shape."""
    model, info = kind.from_pretrained(folder, output_loading_info=True, **more)
    assert not any(info.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def test_hugging_face_vit_mae(model, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    convert.save(model, str(tmp_path / "hf"), format="hf")
    theirs = load_strictly(transformers.ViTMAEForPreTraining, str(tmp_path / "hf"))
    images, floats = pixels(model)
    ours = MaskedAutoencoder(**model.fields)
    noise = np.random.default_rng(1).random((len(images), ours.grid[0] * ours.grid[1]))
    masked = masking.from_noise(jnp.asarray(noise, jnp.float32), 0.75)
    patches = to_float(patchify(jnp.asarray(images), ours.patch_size), MEAN, STD)
    variables = model.variables()
    visible = gather(patches, masked.ids_keep)
    pred = ours.apply(variables, visible, masked, method=ours.predict)
    hidden = gather(patches, masked.ids_masked)
    target = pixel.pixel_target(hidden, normalize=model.metadata["target"]["normalize"])
    loss = pixel.reconstruction_loss(ours.apply(variables, visible, masked), target).mean()
    with torch.no_grad():
        out = theirs(torch.from_numpy(floats), noise=torch.from_numpy(noise).float())
    close(pred, out.logits)
    assert float(loss) == pytest.approx(float(out.loss), abs=1e-4)
    # Written by the library and read again: its present spelling of the names.
    theirs.save_pretrained(tmp_path / "again")
    again = convert.load(str(tmp_path / "again"))
    again.report.check()
    for name, x in model.params.items():
        np.testing.assert_array_equal(again.params[name], x)
    assert again.metadata["target"] == model.metadata["target"] and again.fields == model.fields


def test_hugging_face_encoder(model, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    convert.save(model, str(tmp_path / "vit"), format="hf_vit")
    theirs = load_strictly(transformers.ViTModel, str(tmp_path / "vit"), add_pooling_layer=False)
    images, floats = pixels(model)
    ours = inference.Pretrained(model, "")
    with torch.no_grad():
        out = theirs(torch.from_numpy(floats)).last_hidden_state
    close(ours.features(images, pool="patches"), out[:, 1:])
    close(ours.features(images, pool="cls"), out[:, 0])
    processor = transformers.AutoImageProcessor.from_pretrained(str(tmp_path / "vit"))
    seen = processor(list(images), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(seen, floats, rtol=0, atol=1e-5)
    reread = transformers.AutoModel.from_pretrained(str(tmp_path / "vit"))
    reread.save_pretrained(tmp_path / "again")
    convert.load(str(tmp_path / "again")).report.check()


def test_hugging_face_classifier(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = classifier("cls")
    statistics = {
        "batch_norm/mean": np.linspace(-1, 1, 48, dtype=np.float32),
        "batch_norm/var": np.linspace(0.5, 2, 48, dtype=np.float32),
    }
    fields = model.metadata["model"] | {"head_norm": True}
    probe = dataclasses.replace(
        model, statistics=statistics, metadata=model.metadata | {"model": fields}
    )
    images, floats = pixels(model)
    patches = to_float(patchify(jnp.asarray(images), (4, 4)), MEAN, STD)
    for name, head in (("plain", model), ("probe", probe)):
        convert.save(head, str(tmp_path / name), format="hf_vit")
        theirs = load_strictly(transformers.ViTForImageClassification, str(tmp_path / name))
        assert theirs.config.id2label[3] == "name 3"
        with torch.no_grad():
            logits = theirs(torch.from_numpy(floats)).logits
        close(VisionTransformer(**head.fields).apply(head.variables(), patches), logits)


def test_timm_encoder(model, tmp_path):
    torch, library = pytest.importorskip("torch"), pytest.importorskip("timm")
    convert.save(model, str(tmp_path / "timm"), format="timm")
    theirs = library.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert sorted(theirs.state_dict()) == sorted(load_file(tmp_path / "timm/model.safetensors"))
    images, floats = pixels(model)
    ours = inference.Pretrained(model, "")
    with torch.no_grad():
        tokens = theirs.forward_features(torch.from_numpy(floats))
        pooled = theirs(torch.from_numpy(floats))
    close(ours.features(images, pool="patches"), tokens[:, 1:])
    close(ours.features(images, pool="cls"), pooled)
    data = library.data.resolve_model_data_config(theirs)
    assert tuple(data["mean"]) == MEAN
    assert tuple(data["input_size"]) == (3, *model.fields["image_size"])
    # Other heads, channels and sizes, as timm's users ask for them.
    height, width = model.fields["image_size"]
    more = {"num_classes": 5, "in_chans": 1, "img_size": (2 * height, width)}
    other = library.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, **more)
    assert other(torch.zeros(1, 1, 2 * height, width)).shape == (1, 5)


def test_encoders_that_are_not_square(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    library = pytest.importorskip("timm")
    model = surgery.with_channels(surgery.encoder_only(tiny()), 5, "repeat")
    model = surgery.with_patch_size(surgery.with_image_size(model, (16, 48)), (4, 6))
    images = np.random.default_rng(0).normal(size=(2, 16, 72, 5)).astype(np.float32) * 0.2 + 0.5
    ours = inference.Pretrained(model, "")
    mean, std = (np.array(ours.pixels[key], np.float32) for key in ("mean", "std"))
    floats = torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2).copy())
    expected = ours.features(images, pool="patches")
    for format in ("hf_vit", "timm"):
        convert.save(model, str(tmp_path / format), format=format)
    theirs = load_strictly(transformers.ViTModel, str(tmp_path / "hf_vit"), add_pooling_layer=False)
    with torch.no_grad():
        close(expected, theirs(floats).last_hidden_state[:, 1:])
    theirs = library.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        close(expected, theirs.forward_features(floats)[:, 1:])


def test_timm_fc_norm(model, tmp_path):
    torch, library = pytest.importorskip("torch"), pytest.importorskip("timm")
    pooled = surgery.with_fc_norm(surgery.encoder_only(model))
    convert.save(pooled, str(tmp_path / "timm"), format="timm")
    theirs = library.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images, floats = pixels(model)
    with torch.no_grad():
        out = theirs(torch.from_numpy(floats))
    close(inference.Pretrained(pooled, "").features(images), out)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_timm_classifier(tmp_path, pool):
    torch, library = pytest.importorskip("torch"), pytest.importorskip("timm")
    model = classifier(pool)
    convert.save(model, str(tmp_path / "timm"), format="timm")
    theirs = library.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images, floats = pixels(model)
    patches = to_float(patchify(jnp.asarray(images), (4, 4)), MEAN, STD)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(floats))
    close(VisionTransformer(**model.fields).apply(model.variables(), patches), logits)


def test_timm_loads_the_official_names(tmp_path):
    """An encoder in official names is what `checkpoint_path=` and the released links hold."""
    torch, library = pytest.importorskip("torch"), pytest.importorskip("timm")
    model = surgery.encoder_only(vit_b())
    path = str(tmp_path / "encoder.pth")
    convert.save(model, path)
    content = torch.load(path, weights_only=True)
    assert len(content["model"]) == 150
    theirs = library.create_model(
        "vit_base_patch16_224.mae", pretrained=False, checkpoint_path=path
    ).eval()
    images, floats = pixels(model)
    with torch.no_grad():
        out = theirs(torch.from_numpy(floats))
    close(inference.Pretrained(model, "").features(images, pool="cls"), out)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_without_torch(model, tmp_path, zipped):
    torch = pytest.importorskip("torch")
    convert.save(model, str(tmp_path / "whole.pth"))
    content = torch.load(tmp_path / "whole.pth", weights_only=True)
    if len(model.params) > 200:
        assert len(content["model"]) == 254  # of a whole ViT-B
    path = str(tmp_path / "again.pth")
    torch.save({"model": content["model"]}, path, _use_new_zipfile_serialization=zipped)
    for name, x in torch_pickle.read(path)["model"].items():
        np.testing.assert_array_equal(x, content["model"][name].numpy())
    hints = convert.Hints(num_heads=3, decoder_num_heads=2, normalize=True)
    if len(model.params) > 200:
        hints = convert.Hints(normalize=True)
    again = convert.load(path, hints=hints)
    again.report.check()
    for name, x in model.params.items():
        np.testing.assert_array_equal(again.params[name], x)
