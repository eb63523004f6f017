"""The detection task and its tools: one tiny run on four devices, and what starts from it."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mae_jax import convert
from mae_jax.checkpoint import checkpointer, reader
from mae_jax.convert.surgery import resample_kernel
from mae_jax.convert.weights import make_report
from mae_jax.data.sources import coco
from mae_jax.data.sources.shapes import ShapesSource
from mae_jax.distributed import sharding
from mae_jax.models import mae as mae_module
from mae_jax.models.mae import MaskedAutoencoder
from mae_jax.models.pos_embed import resize_table, sincos_2d
from mae_jax.ops.trees import flatten
from mae_jax.optim.param_groups import BACKBONE
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import detection_eval, encoder_transfer
from mae_jax.tasks.detect import SCORES, Detect
from mae_jax.tools import evaluate, predict
from mae_jax.train import loop
from mae_jax.train.state import abstract_state, create_state
from mae_jax.train.step import make_train_step
from tests.helpers import tiny_configs

STEPS, STOP = 12, 7
# As wide as the pyramid and the heads, whose norms could be mistaken for the encoder's (P25).
ENCODER = {
    "image_size": (32, 32), "patch_size": (8, 8), "channels": 3, "embed_dim": 8, "depth": 2,
    "num_heads": 2, "mlp_ratio": 4.0, "decoder_embed_dim": 8, "decoder_depth": 1,
    "decoder_num_heads": 2,
}  # fmt: skip
SETTINGS = {
    "model__embed_dim": 8, "model__depth": 2, "model__drop_path": 0.3, "grad_accum": 2,
    "detector__hidden_dim": 48,  # so that one kernel is large enough to be sharded
    "detector__pretrain_size": (48, 48), "mesh__fsdp": 2, "eval_every": 6, "figure_every": 12,
    "data__shape_classes": 3, "checkpoint__keep_best": "",
}  # fmt: skip


def detect_config(**changes):
    return tiny_configs.detect_config(**SETTINGS | changes)


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Traces each program once: a new `jax.jit` would trace it again for every run."""
    memory = {}

    def once(make, *key):
        if key not in memory:
            memory[key] = make()
        return memory[key]

    def state(task, mesh):
        return once(lambda: abstract_state(task, mesh), "state", mesh)

    def train_step(task, abstract, mesh, **options):
        make = lambda: make_train_step(task, abstract, mesh, **options)  # noqa: E731
        return once(make, "train", mesh, options["grad_accum"])

    compile_eval_step = detection_eval.compile_eval_step

    def eval_step(rows, mesh):
        return once(lambda: compile_eval_step(rows, mesh), "eval", repr(rows.__self__.model), mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "abstract_state", state)
        patch.setattr(loop, "make_train_step", train_step)
        patch.setattr(detection_eval, "compile_eval_step", eval_step)
        yield


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Weights of an autoencoder, all of them random."""
    model, rng = MaskedAutoencoder(**ENCODER), np.random.default_rng(0)
    shapes = flatten(jax.eval_shape(lambda: mae_module.init_params(model, jax.random.key(0))))
    params = {name: rng.normal(0, 0.1, x.shape).astype(np.float32) for name, x in shapes.items()}
    metadata = {
        "task": "pretrain", "step": 1, "epochs_seen": 1.0,
        "model": {"kind": "mae", "size": "custom", **ENCODER},
        "target": {"kind": "pixel", "normalize": False},
        "data": {"mean": [0.5] * 3, "std": [0.25] * 3, "dtype": "uint8", "source": {}},
        "config": {"model": {"dtype": "auto"}, "data": {}},
    }  # fmt: skip
    report = make_report(params, metadata, kind="made here")
    folder = str(tmp_path_factory.mktemp("pretrained") / "weights")
    convert.save(convert.Weights(params, {}, metadata, report), folder)
    return folder


@pytest.fixture(scope="module")
def config(pretrained):
    return detect_config(init_from=pretrained)


@pytest.fixture(scope="module")
def task(config):
    return Detect(config.copy_and_resolve_references(), "")


@pytest.fixture(scope="module")
def mesh(config):
    return sharding.make_mesh(**config.mesh)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A whole run from the pre-trained encoder."""
    folder = str(tmp_path_factory.mktemp("run"))
    assert loop.run(Detect(config, folder), config, folder)
    return Path(folder)


def test_a_restart_changes_no_bit(run, config, mesh, tmp_path):
    parts = str(tmp_path)
    assert not loop.run(Detect(config, parts), config, parts, **tiny_configs.stop_in_step(STOP))
    assert loop.run(Detect(config, parts), config, parts)
    for split in ("train", "eval"):
        whole = tiny_configs.metric_lines(run, split)
        assert whole == tiny_configs.metric_lines(parts, split)
        assert whole[-1]["step"] == STEPS
    states = []
    for folder in (str(run), parts):
        saver = checkpointer.Checkpointer(folder, read_only=True)
        states.append(saver.restore(STEPS, loop.abstract_state(None, mesh)))
        saver.close()
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def initial(task, mesh):
    """A state before the first step, in host memory."""
    return jax.device_get(create_state(task, loop.abstract_state(task, mesh)))


def update(task, state, mesh, grad_accum):
    """The state after a step on a mesh, and the metrics of the step."""
    shardings = sharding.state_sharding(mesh, state)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
    step = loop.make_train_step(task, abstract, mesh, seed=0, grad_accum=grad_accum)
    batches = task.train_batches(0)
    batch = sharding.to_device(mesh, next(batches))
    batches.close()
    return jax.device_get(step(jax.device_put(state, shardings), batch))


def test_one_device_makes_the_update_of_four_in_two_parts(task, initial, mesh):
    """Four devices split the parameters in two (fsdp), the batch in four, and accumulate twice."""
    alone = sharding.make_mesh(data=1, devices=jax.devices()[:1])
    state, values = update(task, initial, alone, 1)
    split, expected = update(task, initial, mesh, 2)
    kernel = sharding.state_sharding(mesh, initial).params["box_head"]["fc1"]["kernel"]
    assert "fsdp" in str(kernel.spec)
    assert values["loss_mask"] > 0 and values["loss_rpn_box"] > 0 and values["loss_box"] > 0
    for name in values:
        np.testing.assert_allclose(values[name], expected[name], rtol=1e-5, err_msg=name)
    # Adam's first step hides the size of a gradient; its moments show it.
    moments = (flatten(x.opt_state[1].mu) for x in (state, split))
    for (name, a), b in zip(next(moments).items(), next(moments).values(), strict=True):
        # The target of a mask is cut off at 0.5, so one of its pixels may differ by rounding.
        relative = 2e-3 if name.startswith("mask_head/") else 1e-5
        bound = relative * max(float(np.abs(a).max()), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=name)


def test_an_update_that_is_not_finite_is_skipped(task, initial, mesh):
    params = dict(initial.params, rpn=jax.tree.map(np.copy, initial.params["rpn"]))
    params["rpn"]["objectness"]["bias"][0] = np.nan
    bad = initial.replace(params=params)
    state, values = update(task, bad, mesh, 2)
    assert values["skipped"] == 1 and np.isnan(values["loss"])
    assert state.step == 1
    for a, b in zip(*map(jax.tree.leaves, (state.params, params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_starts_with_the_encoder_and_nothing_else(run, task, pretrained, caplog):
    given = {
        name: np.asarray(x) for name, x in flatten(reader.load_arrays(pretrained)["params"]).items()
    }
    encoder = [n for n in given if n.startswith(("blocks_", "patch_embed/"))]
    report = json.loads((run / "init_from.json").read_text())
    assert set(report["matched"]) == {BACKBONE + n for n in [*encoder, "pos_embed"]}
    new = ("pyramid/", "rpn/", "box_head/", "mask_head/")
    assert all(n.startswith(new) or "/attn/rel_pos_" in n for n in report["fresh"])
    assert {"norm/scale", "norm/bias", "cls_token", "mask_token"} <= set(report["unused"])
    metadata = reader.load_metadata(pretrained)
    with caplog.at_level("INFO"):
        arrays = task.load_pretrained(given, metadata).arrays
    for name in encoder:
        np.testing.assert_array_equal(arrays[BACKBONE + name], given[name], err_msg=name)
    assert "position table resized from (4, 4) to (6, 6)" in caplog.text
    table = resize_table(sincos_2d(8, (4, 4))[None], (4, 4), (6, 6))
    np.testing.assert_array_equal(arrays[BACKBONE + "pos_embed"], table)
    metadata["model"]["num_heads"] = 4
    with pytest.raises(UsageError, match="has 4 attention heads, but .*num_heads is 2"):
        task.load_pretrained(given, metadata)


def test_patches_of_vit_h_are_resized(task):
    """14 to 16 pixels, and the table of 16 x 16 patches to 14 x 14."""
    rng = np.random.default_rng(0)
    kernel, table = rng.normal(size=(14, 14, 3, 8)), rng.normal(size=(1, 257, 8))
    weights = {"patch_embed/proj/kernel": kernel, "pos_embed": table}
    theirs = {"kind": "vit", "num_heads": 2, "depth": 0, "image_size": [224, 224],
              "patch_size": [14, 14], "embed_dim": 8}  # fmt: skip
    fields = task.fields | {"patch_size": (16, 16), "table_grid": (14, 14)}
    adopted = encoder_transfer.adopt_backbone(fields, [], weights, {"model": theirs}).arrays
    assert adopted.keys() == {BACKBONE + name for name in weights}
    found = adopted[BACKBONE + "patch_embed/proj/kernel"]
    np.testing.assert_array_equal(found, resample_kernel(kernel, (16, 16)))
    assert adopted[BACKBONE + "pos_embed"].shape == (1, 197, 8)


def test_a_detector_of_other_classes_keeps_its_outputs_per_class(run, task):
    arrays = flatten(reader.load_arrays(str(run))["params"])
    metadata = reader.load_metadata(str(run))
    same = task.load_pretrained(arrays, metadata)
    assert same.arrays.keys() == arrays.keys() and not same.reinitialized
    other = task.load_pretrained(arrays, metadata | {"classes": ["a", "b"]})
    left = {
        n for n in arrays if n.startswith(("box_head/scores", "box_head/deltas", "mask_head/p"))
    }
    assert len(left) == 6 and arrays.keys() - other.arrays.keys() == left == set(other.unused)
    assert all(name.startswith(other.reinitialized) for name in left)


def test_what_a_run_shows(run, task):
    figure = np.asarray(Image.open(run / "pictures" / "step_00000012.png"))
    zoom = 320 // 40  # images of 40 pixels
    assert figure.shape[1] == 4 * (40 * zoom + 4) + 4 and figure.std() > 10
    line = tiny_configs.metric_lines(run, "eval")[-1]
    assert line["count"] == 13 and {"box_ap", "mask_ap50", "box_ap_small"} <= line.keys()
    line = tiny_configs.metric_lines(run)[-1]
    parts = ("loss_cls", "loss_box", "loss_mask", "loss_rpn_cls", "loss_rpn_box")
    assert line["loss"] == pytest.approx(sum(line[name] for name in parts), rel=1e-5)
    evaluation, prediction = task.next_commands("w")
    assert evaluation == "python -m mae_jax.tools.evaluate --checkpoint w --out evaluation"
    assert prediction.startswith("python -m mae_jax.tools.predict --checkpoint w --images DIR")


def test_images_that_cannot_be_read_are_no_error(task, mesh, monkeypatch):
    """The loop evaluates again once they can be read."""
    monkeypatch.setattr(task.data, "eval_batches", lambda *args, **options: iter(()))
    state = type("State", (), {"params": {}, "model_state": {}})
    assert task.evaluate(state, mesh) == {"count": 0.0}
    assert task.figure(state, mesh).ndim == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__patch_size": (6, 6), "model__image_size": (36, 36),
          "detector__pretrain_size": (36, 36)}, r"patch_size=\(6, 6\) must be square and a mult"),
        ({"model__patch_size": (8, 4)}, r"patch_size=\(8, 4\) must be square"),
        ({"model__image_size": (40, 40)}, r"image_size=\(40, 40\) must .* multiple of 16"),
        ({"model__image_size": (32, 48)}, r"image_size=\(32, 48\) must be square"),
        ({"detector__pretrain_size": (30, 30)}, "pretrain_size"),
        ({"model__num_classes": 80}, "has 3 classes, but --config.model.num_classes=80"),
        ({"detector__backbone": "resnet"}, "--config.detector.backbone=resnet is not one of"),
        ({"detector__backbone": "fpn"}, "embed_dim=8 must be a multiple of 32"),
        ({"detector__backbone": "fpn", "model__embed_dim": 32}, "depth=2 must be at least 4"),
        ({"data__num_eval": 0, "data__holdout": 0}, "no held-out images: set --config.data.h"),
        ({"data__source": "folder", "data__root": "ROOT"}, "coco"),
        ({"data__source": "coco", "data__root": "ROOT"}, "no annotations in COCO's format"),
    ],
)  # fmt: skip
def test_impossible_choices_are_one_line(tmp_path, changes, message):
    if "data__root" in changes:
        Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
        changes = changes | {"data__root": str(tmp_path)}
    with pytest.raises(UsageError, match=message) as caught:
        Detect(detect_config(init_from="", **changes), "")
    assert "\n" not in str(caught.value)


# Tools.


def printed(text):
    return {
        words[0]: float(words[1]) for words in map(str.split, text.splitlines()) if len(words) == 2
    }


def test_evaluation_reproduces_what_the_run_logged(run, tmp_path, capsys):
    assert evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path)]) == 0
    found = printed(capsys.readouterr().out)
    logged = tiny_configs.metric_lines(run, "eval")[-1]
    compared = {"count", *SCORES}
    assert compared <= found.keys() & logged.keys() and "mask_ap_small" in compared
    for name in compared:
        assert found[name] == pytest.approx(logged[name], rel=1e-3), name
    with open(tmp_path / "per_image.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 14
    results = json.loads((tmp_path / "detections.json").read_text())
    assert len(results) > 13 and results[0].keys() >= {"bbox", "segmentation", "score"}
    assert Image.open(tmp_path / "worst.png").size[0] > 600


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three images, two of them oblong, and objects of two classes with ids of their own."""
    folder = tmp_path_factory.mktemp("photos")
    shapes = ShapesSource("eval", start=5, count=3, image_size=(40, 40), channels=3, objects=True,
                          num_classes=3)  # fmt: skip
    images, annotations = [], []
    for index, (height, width) in enumerate([(50, 50), (30, 50), (50, 41)]):
        pixels = shapes.read([index])[0].data[:height, :width]
        Image.fromarray(pixels).save(folder / f"{index}.png")
        images.append(
            {"id": 7 + index, "file_name": f"{index}.png", "height": height, "width": width}
        )
        annotations.append(
            {"id": index, "image_id": 7 + index, "category_id": 30 + 10 * (index % 2),
             "bbox": [4, 5, 20, 16], "area": 320, "iscrowd": 0,
             "segmentation": [[4, 5, 24, 5, 24, 21, 4, 21]]}
        )  # fmt: skip
    classes = list(shapes.classes or ())
    categories = [{"id": 30, "name": classes[2]}, {"id": 40, "name": classes[0]}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_other_images_with_their_annotations(run, photos, tmp_path, capsys):
    more = ["--images", str(photos), "--annotations", str(photos / "annotations.json")]
    assert evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path), *more]) == 0
    assert printed(capsys.readouterr().out)["count"] == 3
    results = json.loads((tmp_path / "detections.json").read_text())
    sizes = {7: (50, 50), 8: (30, 50), 9: (50, 41)}
    for result in results:
        height, width = sizes[result["image_id"]]
        assert result["segmentation"]["size"] == [height, width]
        x, y, w, h = result["bbox"]
        assert x >= 0 and y >= 0 and x + w <= width + 1e-3 and y + h <= height + 1e-3
    with open(tmp_path / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["image"] for row in rows) == [str(photos / f"{i}.png") for i in range(3)]


def test_predictions_are_a_file_that_coco_reads(run, photos, tmp_path, capsys):
    from pycocotools.coco import COCO

    (photos / "broken.png").write_bytes(b"no image")
    arguments = ["--checkpoint", str(run), "--images", str(photos), "--out", str(tmp_path)]
    assert predict.main(arguments) == 0
    (photos / "broken.png").unlink()
    assert f"could not be read: {photos / 'broken.png'}" in capsys.readouterr().err
    coco = COCO(str(tmp_path / "detections.json"))
    sizes = {Path(x["file_name"]).name: (x["height"], x["width"]) for x in coco.dataset["images"]}
    assert sizes == {"0.png": (50, 50), "1.png": (30, 50), "2.png": (50, 41)}
    assert len(coco.dataset["categories"]) == 3
    for entry in coco.dataset["annotations"]:
        image = coco.imgs[entry["image_id"]]
        mask = coco.annToMask(entry)
        assert mask.shape == (image["height"], image["width"]) and mask.sum() == entry["area"]
    assert Image.open(tmp_path / "detections.png").size[0] > 900


def test_flags_that_do_not_belong_together_are_one_line(run, photos, tmp_path):
    use = ["--checkpoint", str(run), "--out", str(tmp_path / "out")]
    for more, message in (
        (["--annotations", "a.json"], "--annotations needs --images"),
        (["--images", str(photos)], "--images of a detector needs --annotations"),
        (["--classes", str(photos)], "--classes is for classifiers"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate.main([*use, *more])
    with pytest.raises(UsageError, match="--ema: detectors have no averaged weights"):
        predict.main([*use, "--images", str(photos), "--ema"])


def test_an_exported_detector_finds_the_same(run, photos, tmp_path):
    model = convert.load(str(run))
    convert.save(model, str(tmp_path / "model.pkl"), format="detectron2")
    again = convert.load(str(tmp_path / "model.pkl"))
    again.report.check()
    assert again.params.keys() == model.params.keys() and again.fields == model.fields
    for name, x in model.params.items():
        np.testing.assert_array_equal(again.params[name], x, err_msg=name)
    source = coco.annotated_images(
        str(photos), str(photos / "annotations.json"), classes=model.metadata["classes"]
    )
    first, second = (detection_eval.detect(x, source, batch_size=8) for x in (model, again))
    assert [x.masks for x in first] == [x.masks for x in second]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        assert len(a.boxes) > 0
