"""Detectors in files: detectron2's with and without our description, and our own formats."""

import functools
import json
import pickle

import jax
import numpy as np
import pytest

from mae_jax import convert, inference
from mae_jax.convert import detectron2, infer_detector, readers, weights
from mae_jax.convert.validate import check_metadata
from mae_jax.convert.weights import make_report
from mae_jax.models import factory, mask_rcnn
from mae_jax.models.mask_rcnn import Settings
from mae_jax.models.vit import SIZES
from mae_jax.models.vitdet import quarter_ends
from mae_jax.ops.trees import flatten
from mae_jax.runtime.errors import UsageError
from mae_jax.tools import convert as tool
from tests.parity import official

FIELDS = {
    "image_size": (48, 48), "patch_size": (8, 8), "channels": 3, "embed_dim": 8, "depth": 5,
    "num_heads": 2, "mlp_ratio": 2.0, "drop_path": 0.0, "window": 4, "table_grid": (7, 7),
    "backbone": "vitdet", "width": 8, "hidden_dim": 16, "num_classes": 3,
    "settings": Settings()._asdict(),
}  # fmt: skip
WIDTHS = {"vitdet": 8, "fpn": 32}  # of the blocks; there are groups of 32 channels in `fpn`
PIXELS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}


@pytest.fixture(scope="module", autouse=True)
def shapes_of_each_model_once():
    """Tracing a detector for the shapes of its parameters takes most of the time."""
    memory, compute = {}, weights.expected_shapes

    def expected_shapes(metadata):
        key = json.dumps(metadata["model"])
        if key not in memory:
            memory[key] = compute(metadata)
        return memory[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "expected_shapes", expected_shapes)
        yield


@functools.cache
def detector(backbone):
    """A tiny detector; all arrays are random."""
    fields = FIELDS | {"backbone": backbone, "embed_dim": WIDTHS[backbone]}
    model = factory.build_detector(fields, dtype="float32")
    shapes = jax.eval_shape(lambda: mask_rcnn.init_variables(model, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params, statistics = (
        {name: rng.normal(size=x.shape).astype(np.float32) for name, x in flatten(part).items()}
        for part in (shapes[0], shapes[1].get("batch_stats", {}))
    )
    metadata = {
        "task": "detect", "step": 1, "epochs_seen": 1.0, "classes": ["a", "b", "c"],
        "model": {"kind": "mask_rcnn", "size": "custom", **fields},
        "data": PIXELS | {"dtype": "uint8", "source": {}},
        "config": {"model": {"dtype": "auto"}, "data": {}},
    }  # fmt: skip
    report = make_report(params, metadata, kind="made here")
    return convert.Weights(params, statistics, json.loads(json.dumps(metadata)), report)


def same(one, other):
    for part in ("params", "statistics"):
        theirs = getattr(other, part)
        assert getattr(one, part).keys() == theirs.keys()
        for name, x in getattr(one, part).items():
            np.testing.assert_array_equal(x, theirs[name], err_msg=name, strict=True)


def plain(fields):
    """With lists for tuples."""
    return json.loads(json.dumps(fields))


@pytest.mark.parametrize("backbone", ["vitdet", "fpn"])
@pytest.mark.parametrize("name", ["model.pkl", "model.npz", "folder"])
def test_out_and_in_again_is_exact(tmp_path, backbone, name):
    model, path = detector(backbone), str(tmp_path / name)
    convert.save(model, path, format="detectron2" if name.endswith("pkl") else "")
    again = convert.load(path)
    again.report.check()
    same(model, again)
    assert bool(model.statistics) == (backbone == "fpn")
    assert plain(again.fields) == plain(model.fields)
    assert again.metadata["classes"] == ["a", "b", "c"]
    assert again.metadata["data"]["mean"] == PIXELS["mean"]


@pytest.mark.parametrize("backbone", ["vitdet", "fpn"])
def test_a_file_of_detectron2_is_described_by_its_shapes(tmp_path, backbone):
    """Grid, window, heads and position table, all different; the rest is as released."""
    model, path = detector(backbone), tmp_path / "model.pkl"
    convert.save(model, str(path), format="detectron2")
    content = pickle.loads(path.read_bytes())
    del content[readers.METADATA]
    content["model"]["pixel_mean"] = np.zeros((3, 1, 1), np.float32)
    path.write_bytes(pickle.dumps(content))
    again = convert.load(str(path))
    again.report.check()
    same(model, again)
    assert plain(again.fields) == plain(model.fields)
    assert again.metadata["classes"] == ["0", "1", "2"]
    np.testing.assert_allclose(again.metadata["data"]["mean"], (0.485, 0.456, 0.406))
    named = convert.load(str(path), hints=convert.Hints(classes=["x", "y", "z"]))
    assert named.metadata["classes"] == ["x", "y", "z"]
    with pytest.raises(UsageError, match="model.pkl: 2 class names for a detector of 3 classes"):
        convert.load(str(path), hints=convert.Hints(classes=["x", "y"]))


def test_a_detector_without_windows_has_none():
    arrays = {f"backbone/blocks_{i}/attn/rel_pos_{axis}": np.zeros((11, 4)) for i in range(4)
              for axis in "hw"}  # fmt: skip
    grid, _, heads = infer_detector._own_tables(arrays, 8, 4)
    assert (grid, heads) == ((6, 6), 2)


@pytest.mark.parametrize("size", "blh")
def test_released_detectors_are_described(size):
    with open(official.path("detection/n_parameters_optimizer.json"), encoding="utf-8") as file:
        table = json.load(file)[size]["table"]
    zero = np.float32(0)
    kept = {n: s for n, s, *_ in table if "blocks" not in n or ".attn." in n or ".fc1." in n}
    arrays = detectron2.to_ours({n: np.broadcast_to(zero, s) for n, s in kept.items()}).arrays
    metadata = infer_detector.describe_detector(arrays)
    check_metadata(metadata, num_arrays=len(table))
    assert metadata["model"]["size"] == size.upper()
    assert metadata["classes"][0] == "person" and metadata["classes"][79] == "toothbrush"
    model = factory.build_detector(weights.fields(metadata), dtype="float32")
    expected = SIZES[size.upper()]
    backbone = model.backbone
    assert (backbone.embed_dim, backbone.depth, backbone.num_heads) == expected
    assert backbone.image_size == (1024, 1024) and backbone.table_grid == (14, 14)
    ends = quarter_ends(expected.depth)
    windows = [0 if i in ends else 14 for i in range(expected.depth)]
    assert backbone.block_windows == windows and backbone.mlp_ratio == 4
    assert (model.width, model.hidden_dim, model.num_classes) == (256, 1024, 80)


@pytest.mark.parametrize(
    "names, message",
    [
        (["backbone.bottom_up.stem.conv1.weight", "roi_heads.box_head.fc1.weight"],
         "not a detector on a plain ViT: it has no 'backbone/patch_embed/proj/kernel'"),
        (["backbone.bottom_up.stem.conv1.weight"], "it has no patch embedding"),
    ],
)  # fmt: skip
def test_other_models_of_detectron2_are_refused(tmp_path, names, message):
    path = tmp_path / "model.pkl"
    arrays = {name: np.zeros((4, 3 * 49), np.float32) for name in names}
    path.write_bytes(pickle.dumps({"model": arrays}))
    with pytest.raises(UsageError, match=message) as caught:
        convert.load(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_and_missing_arrays_are_named(tmp_path):
    path = tmp_path / "model.pkl"
    convert.save(detector("vitdet"), str(path), format="detectron2")
    content = pickle.loads(path.read_bytes())
    content["model"]["roi_heads.box_head.conv1.weights"] = content["model"].pop(
        "roi_heads.box_head.conv1.weight"
    )
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UsageError, match=r"missing \['box_head/conv0/kernel'\].*unused \['roi_he"):
        convert.load(str(path)).report.check()
    del content["model"]["roi_heads.box_predictor.cls_score.bias"], content[readers.METADATA]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UsageError, match="it has no 'box_head/scores/bias'"):
        convert.load(str(path))


def test_descriptions_that_are_impossible_are_refused(tmp_path):
    """The description in a file is not trusted: a window of a billion patches, for instance."""
    path = tmp_path / "model.pkl"
    convert.save(detector("vitdet"), str(path), format="detectron2")
    content = pickle.loads(path.read_bytes())
    for key, value in (("window", 10**9), ("backbone", "resnet"), ("settings", {"proposals": -1}),
                       ("table_grid", [1, 2, 3]), ("num_classes", 0)):  # fmt: skip
        metadata = json.loads(json.dumps(detector("vitdet").metadata))
        metadata["model"][key] = value
        path.write_bytes(pickle.dumps(content | {readers.METADATA: json.dumps(metadata)}))
        with pytest.raises(UsageError, match="description of the model is impossible"):
            convert.load(str(path))


@pytest.mark.parametrize("format", ["hf", "hf_vit", "timm", "official"])
def test_other_formats_are_refused(tmp_path, format):
    path = str(tmp_path / ("x.safetensors" if format == "official" else "x"))
    with pytest.raises(UsageError, match=f"--format={format} is not for detectors: mae, npz, det"):
        convert.save(detector("vitdet"), path, format=format)


def test_the_command_converts_detectors_and_no_others(tmp_path, capsys):
    folder, path = str(tmp_path / "folder"), str(tmp_path / "model.pkl")
    convert.save(detector("vitdet"), folder)
    assert tool.main(["--from", folder, "--to", path, "--format", "detectron2"]) == 0
    number, text = len(detector("vitdet").params), capsys.readouterr().out
    assert f"{number} arrays under the names of detectron2" in text
    assert "5 blocks of width 8, 2 heads, images 48x48x3, patches 8x8; Mask R-CNN of 3 cl" in text
    with pytest.raises(UsageError, match="folder is a detector, which has no feature vector"):
        inference.load(folder).features(np.zeros((1, 48, 48, 3), np.uint8))
    for flag in (["--encoder_only"], ["--resize", "96"], ["--resample_patch", "16"]):
        with pytest.raises(UsageError, match=f"{flag[0]}: not for detectors"):
            tool.main(["--from", folder, "--to", str(tmp_path / "x"), *flag])
    classifier = convert.load(
        official.path("vit_tiny_gp1.safetensors"), hints=convert.Hints(num_heads=3)
    )
    with pytest.raises(UsageError, match="detectron2 is for detectors"):
        convert.save(classifier, str(tmp_path / "x.pkl"), format="detectron2")
