"""Detectors that we write, in torch and in transformers' ViTDet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax import convert
from mae_jax.models import factory, mask_rcnn
from tests.convert.test_detector_files import PIXELS, detector, plain, same

pytestmark = pytest.mark.interop

PREFIX = "backbone.net."
WORDS = (  # of the names in detectron2 and in transformers
    ("blocks.", "encoder.layer."),
    ("attn.", "attention."),
    ("patch_embed.proj.", "embeddings.projection."),
    ("pos_embed", "embeddings.position_embeddings"),
)


@pytest.mark.parametrize("backbone", ["vitdet", "fpn"])
def test_files_of_torch_are_read_without_torch(tmp_path, backbone):
    torch = pytest.importorskip("torch")
    model, path = detector(backbone), str(tmp_path / "model.pth")
    convert.save(model, path, format="detectron2")
    again = convert.load(path)
    again.report.check()
    same(model, again)
    assert again.metadata["data"]["mean"] == PIXELS["mean"]
    content = torch.load(path, weights_only=True)
    torch.save({"model": content["model"], "iteration": 3}, path)
    bare = convert.load(path)
    bare.report.check()
    same(model, bare)
    assert plain(bare.fields) == plain(model.fields)


def test_the_backbone_computes_the_same_in_transformers(tmp_path):
    """Windows with padding, a resized position table, and relative positions."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, path = detector("vitdet"), str(tmp_path / "model.pth")
    convert.save(model, path, format="detectron2")
    fields = model.fields
    ours = factory.build_detector(fields, dtype="float32")
    windowed = [i for i, window in enumerate(ours.backbone.block_windows) if window]
    config = transformers.VitDetConfig(
        hidden_size=fields["embed_dim"],
        num_hidden_layers=fields["depth"],
        num_attention_heads=fields["num_heads"],
        mlp_ratio=int(fields["mlp_ratio"]),
        image_size=fields["image_size"][0],
        pretrain_image_size=fields["table_grid"][0] * fields["patch_size"][0],
        patch_size=fields["patch_size"][0],
        window_size=fields["window"],
        window_block_indices=windowed,
        residual_block_indices=[],
        use_absolute_position_embeddings=True,
        use_relative_position_embeddings=True,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    theirs = transformers.VitDetModel(config).eval()
    state = {}
    for name, x in torch.load(path, weights_only=True)["model"].items():
        if name.startswith(PREFIX):
            name = name.removeprefix(PREFIX)
            for word, other in WORDS:
                name = name.replace(word, other)
            state[name] = x
    theirs.load_state_dict(state)  # strictly: no name is missing or left
    images = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state
    found = jax.jit(lambda x: ours.apply(model.variables(), x, method=_backbone))(images)
    scale = float(expected.abs().max())
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(found), -1, 1), expected.numpy(), rtol=0, atol=1e-4 * scale
    )


def _backbone(model: mask_rcnn.MaskRCNN, images: jax.Array) -> jax.Array:
    return model.backbone(jnp.asarray(images))
