"""The classification task: trained and frozen parameters, resuming, transfer, refusals."""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mae_jax.checkpoint import checkpointer, reader
from mae_jax.config.diff import changes as config_changes
from mae_jax.data import pipeline
from mae_jax.distributed import sharding
from mae_jax.ops import rng
from mae_jax.ops.trees import flatten
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.classification_eval import Predictions
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import loop
from mae_jax.train.initial_state import start_state
from mae_jax.train.state import abstract_state, create_state
from mae_jax.train.step import make_train_step
from tests.helpers import tiny_configs


def run(workdir, config, task=Classify, **options):
    workdir = str(workdir)
    return loop.run(task(config, workdir), config, workdir, **options)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    assert run(folder, tiny_configs.config(steps=4, model__depth=2), Pretrain)
    return str(folder)


def classify(kind="finetune", **changes):
    return tiny_configs.classify_config(kind, model__depth=2, **changes)


def params_of(folder):
    return flatten(reader.load_arrays(str(folder))["params"])


def start_of(config, workdir):
    """Parameters before the first step, by name."""
    task = Classify(config, "")
    abstract = abstract_state(task, sharding.make_mesh(**config.mesh))
    state = start_state(task, config, str(workdir), NoCheckpoint(), abstract, False).state
    return {name: np.asarray(x) for name, x in flatten(state.params).items()}


class NoCheckpoint:
    def steps(self):
        return []


EVERYTHING = {
    "model__drop_path": 0.3, "mix__mixup": 0.8, "mix__cutmix": 1.0, "mix__group": 4,
    "erase_prob": 0.25, "data__randaug_magnitude": 9.0, "optim__ema": 0.9,
}  # fmt: skip


@pytest.mark.parametrize(
    "kind, settings",
    [("finetune", EVERYTHING), ("linprobe", {"grad_accum": 2, "mesh__fsdp": 2})],
    ids=["fine-tuning with all that is random", "probe in two parts"],
)
def test_a_restart_changes_no_bit(tmp_path, pretrained, kind, settings):
    config = classify(kind, steps=12, eval_every=6, init_from=pretrained, **settings)
    assert run(tmp_path / "whole", config)
    assert not run(tmp_path / "parts", config, **tiny_configs.stop_in_step(7))
    assert run(tmp_path / "parts", config)
    for split in ("train", "eval"):
        whole, parts = (tiny_configs.metric_lines(tmp_path / n, split) for n in ("whole", "parts"))
        assert whole == parts and whole
    states = []
    for name in ("whole", "parts"):
        task = Classify(config, str(tmp_path / name))
        saver = checkpointer.Checkpointer(str(tmp_path / name))
        states.append(saver.restore(12, abstract_state(task, sharding.make_mesh(**config.mesh))))
        saver.close()
    assert bool(states[0].model_state) == (kind == "linprobe")
    assert bool(states[0].ema) == (kind == "finetune")
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "kind, changes, trained",
    [
        ("finetune", {}, ["blocks_0", "blocks_1", "cls_token", "fc_norm", "head", "patch_embed",
                          "pos_embed"]),
        ("linprobe", {}, ["head"]),
        ("finetune", {"trainable": "last", "trainable_blocks": 1.0},
         ["blocks_1", "fc_norm", "head"]),
        ("finetune", {"trainable": "last", "trainable_blocks": 0.5, "head__pool": "cls"},
         ["blocks_1/mlp", "blocks_1/norm2", "head", "norm"]),
    ],
    ids=["all", "head", "last block", "half a block"],
)  # fmt: skip
def test_frozen_parameters_keep_every_bit_and_the_others_move(
    tmp_path, pretrained, kind, changes, trained
):
    config = classify(kind, steps=3, init_from=pretrained, optim__warmup_epochs=0.01, **changes)
    before = start_of(config, tmp_path)
    run(tmp_path, config)
    after = params_of(tmp_path)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    expected = {name for name in before if name.startswith(tuple(trained))}
    assert moved == expected
    # The encoder is the pre-trained one, bit for bit, and the table is the fixed one.
    given = params_of(pretrained)
    for name in set(given) & set(before):
        np.testing.assert_array_equal(given[name], before[name], err_msg=name)


def flops(config):
    task = Classify(config, "")
    mesh = jax.sharding.Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1),
        ("data", "fsdp"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )
    abstract = abstract_state(task, mesh)
    step = make_train_step(task, abstract, mesh, seed=0, grad_accum=1)
    batch = {
        "image": jax.ShapeDtypeStruct((16, 16, 16, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((16,), jnp.int32),
        "index": jax.ShapeDtypeStruct((16,), jnp.int32),
    }
    leaves = jax.tree.leaves(abstract.opt_state)
    return step.lower(abstract, batch).cost_analysis()["flops"], sum(x.size for x in leaves)


def test_frozen_parameters_cost_no_backward_pass_and_no_optimizer_memory():
    wide = {"model__embed_dim": 96, "init_from": ""}
    full, full_memory = flops(classify(**wide, head__pool="cls"))
    last, last_memory = flops(classify(**wide, head__pool="cls", trainable="last",
                                       trainable_blocks=1.0))  # fmt: skip
    head, head_memory = flops(classify(**wide, head__pool="cls", trainable="head"))
    # Two blocks: forward 1, backward 2. The last block of a class token is finished for it alone.
    assert head < 0.4 * full and last < 0.75 * full
    assert head_memory < 0.02 * full_memory and last_memory < 0.55 * full_memory


def test_weights_are_accounted_for(tmp_path, pretrained, caplog):
    with caplog.at_level("INFO"):
        start_of(classify(init_from=pretrained), tmp_path)
    assert "matched 28 of 32 parameters" in caplog.text
    assert "initialized randomly: 4 parameters: fc_norm, head" in caplog.text
    assert "decoder_blocks_0, decoder_embed, decoder_norm, decoder_pred, mask_token, norm" in (
        caplog.text
    )
    with pytest.raises(UsageError, match="unknown .*blocks_1/attn/qkv/kernel"):
        start_of(tiny_configs.classify_config(init_from=pretrained, model__depth=1), tmp_path)
    with pytest.raises(UsageError, match="missing.*blocks_2/attn/qkv/kernel"):
        start_of(tiny_configs.classify_config(init_from=pretrained, model__depth=3), tmp_path)
    with pytest.raises(UsageError, match=r"cls_token is \(1, 1, 24\), needed \(1, 1, 48\)"):
        start_of(classify(init_from=pretrained, model__embed_dim=48), tmp_path)
    # Another image size: the table is resized, the rest is unchanged.
    large = start_of(classify(init_from=pretrained, model__image_size=(32, 24)), tmp_path)
    assert large["pos_embed"].shape == (1, 1 + 8 * 6, 24)
    # A classifier of the same classes is reused with its head, on another grid too.
    run(tmp_path / "tuned", classify(steps=1, init_from=pretrained))
    report = json.loads((tmp_path / "tuned" / "init_from.json").read_text())
    assert len(report["matched"]) == 28 and "pos_embed" in report["matched"]
    assert sorted(report["fresh"]) == ["fc_norm/bias", "fc_norm/scale", "head/bias", "head/kernel"]
    assert "mask_token" in report["unused"] and "blocks_0/attn/qkv/kernel" in report["matched"]
    again = start_of(classify(init_from=str(tmp_path / "tuned")), tmp_path)
    np.testing.assert_array_equal(
        again["head/kernel"], params_of(tmp_path / "tuned")["head/kernel"]
    )
    # The head of a probe depends on its BatchNorm: it cannot be reused without it.
    run(tmp_path / "probe", classify("linprobe", steps=1, init_from=pretrained))
    for kind in ("finetune", "linprobe"):
        caplog.clear()
        with caplog.at_level("INFO"):
            start_of(classify(kind, init_from=str(tmp_path / "probe"), head__pool="cls"), tmp_path)
        assert "initialized randomly: 2 parameters: head" in caplog.text
    with pytest.raises(UsageError, match="has 2 attention heads, but .*num_heads is 4"):
        start_of(classify(init_from=pretrained, model__num_heads=4), tmp_path)
    caplog.clear()
    start_of(classify(init_from=pretrained, data__mean=(0.1, 0.5, 0.5)), tmp_path)
    assert "data.mean=(0.1, 0.5, 0.5), but the weights" in caplog.text
    with pytest.raises(UsageError, match="vit without a decoder"):
        config = tiny_configs.config(init_from=str(tmp_path / "tuned"), model__depth=2)
        run(tmp_path / "back", config, Pretrain)


def test_loss_at_the_start_is_that_of_guessing(pretrained, tmp_path):
    run(tmp_path, classify(steps=1, init_from=pretrained, eval_every=1))
    line = tiny_configs.metric_lines(tmp_path, "eval")[0]
    assert line["loss"] == pytest.approx(np.log(12), abs=1e-3) and line["count"] == 20


def test_batches_are_erased_mixed_and_smoothed_differently_at_every_step():
    task = Classify(classify(init_from="", **EVERYTHING), "")
    batch = {
        "image": jax.random.randint(jax.random.key(0), (16, 16, 16, 3), 0, 255).astype(jnp.uint8),
        "label": jnp.arange(16) % 12,
    }
    prepare = jax.jit(task.prepare)
    steps = [prepare(batch, rng.stream_key(0, "train", step), step) for step in (0, 1, 1)]
    for key in ("image", "target", "noise"):
        assert not np.array_equal(steps[0][key], steps[1][key])
        np.testing.assert_array_equal(steps[1][key], steps[2][key])
    np.testing.assert_allclose(steps[0]["target"].sum(1), 1, rtol=1e-5)
    assert steps[0]["noise"].shape == (16, 2, 2)
    plain = Classify(classify("linprobe", init_from=""), "")
    plain = plain.prepare(batch, rng.stream_key(0, "t"), jnp.int32(0))
    np.testing.assert_array_equal(plain["image"], batch["image"])
    np.testing.assert_array_equal(plain["target"], np.eye(12)[batch["label"]])


def test_the_average_of_the_weights_follows_them():
    config = classify(init_from="", optim__ema=0.75, optim__warmup_epochs=0.01)
    task, mesh = Classify(config, ""), sharding.make_mesh(**config.mesh)
    abstract = abstract_state(task, mesh)
    state = create_state(task, abstract)
    expected = np.asarray(state.params["head"]["kernel"])
    np.testing.assert_array_equal(state.ema["head"]["kernel"], expected)
    step = make_train_step(task, abstract, mesh, seed=0, grad_accum=1)
    batches = task.train_batches(0)
    for _ in range(3):
        state, _ = step(state, sharding.to_device(mesh, next(batches)))
        expected = 0.75 * expected + 0.25 * np.asarray(state.params["head"]["kernel"])
    batches.close()
    np.testing.assert_allclose(state.ema["head"]["kernel"], expected, rtol=0, atol=1e-7)


def test_four_hosts_count_every_one_of_1003_examples_once():
    config = classify(init_from="", data__num_eval=1003, batch_size=64)
    task, mesh = Classify(config, ""), sharding.make_mesh(**config.mesh)
    state = create_state(task, abstract_state(task, mesh))
    hosts = [
        pipeline.eval_batches(
            task.data.eval_source, **task.data.options(64), process_index=i, process_count=4
        )
        for i in range(4)
    ]
    joined = (
        {k: np.concatenate([b[k] for b in bs]) for k in bs[0]} for bs in zip(*hosts, strict=True)
    )
    answers = task._predictor({"params": state.params, **state.model_state}, joined, mesh)
    np.testing.assert_array_equal(np.sort(answers.index), np.arange(1003))
    alone = task.evaluate(state, mesh)
    assert alone["count"] == 1003
    assert answers.metrics()["top1"] == alone["top1"]
    assert answers.metrics()["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert answers.confusion().sum() == 1003


def test_a_figure_shows_the_weights_it_is_asked_for():
    config = classify(init_from="", eval_every=0, data__num_eval=200)
    task, mesh = Classify(config, ""), sharding.make_mesh(**config.mesh)
    state = create_state(task, abstract_state(task, mesh))
    first = task.figure(state, mesh)
    np.testing.assert_array_equal(first, task.figure(state, mesh))
    bias = {**state.params["head"], "bias": jnp.eye(12)[3]}  # predicts the fourth class for all
    later = state.replace(step=state.step + 1, params={**state.params, "head": bias})
    assert not np.array_equal(first, task.figure(later, mesh))


def test_parts_and_sharding_give_the_update_of_the_big_batch():
    base = EVERYTHING | {
        "batch_size": 32, "init_from": "", "optim__warmup_epochs": 1e-9, "model__embed_dim": 64,
        "head__init_std": 0.02,
    }  # fmt: skip
    whole, expected = tiny_configs.one_step(Classify, classify(**base))
    for changes in ({"grad_accum": 4}, {"mesh__fsdp": 4}):
        state, values = tiny_configs.one_step(Classify, classify(**base, **changes))
        for key in ("loss", "grad_norm", "lr"):
            np.testing.assert_allclose(values[key], expected[key], rtol=5e-6, err_msg=key)
        # Adam's first step hides the size of a gradient; its first moment shows it.
        moments = (x.opt_state[1].mu for x in (whole, state))
        for a, b in zip(*map(jax.tree.leaves, moments), strict=True):
            bound = 5e-6 * max(float(np.abs(a).max()), 1e-4)
            np.testing.assert_allclose(a, b, rtol=0, atol=bound)


def test_a_probe_is_not_continued_in_other_parts():
    old = classify("linprobe", init_from="")
    new = classify("linprobe", init_from="", grad_accum=2)
    assert config_changes(old, new) == ["grad_accum: 1 -> 2"]
    assert not config_changes(classify(init_from=""), classify(init_from="", grad_accum=2))


def test_scores_are_those_of_plain_counting(tmp_path):
    logits = np.random.default_rng(0).normal(size=(50, 7))
    labels = np.arange(50) % 7
    best = np.argsort(-logits, axis=1)[:, :5]
    loss = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, labels), np.float64)
    answers = Predictions([f"c{i}" for i in range(7)], np.arange(50), labels, best, loss)
    metrics = answers.metrics()
    assert metrics["top1"] == np.mean(logits.argmax(1) == labels)
    ranks = (logits > logits[np.arange(50), labels][:, None]).sum(1)
    assert metrics["top5"] == np.mean(ranks < 5) and metrics["count"] == 50
    each, by_class = answers.write(str(tmp_path), lambda i: f"image {i}")
    lines = pathlib.Path(each).read_text().splitlines()
    assert len(lines) == 51 and lines[4].startswith(f"image 3,c3,c{best[3, 0]},")
    rows = [line.split(",") for line in pathlib.Path(by_class).read_text().splitlines()[1:]]
    assert sum(int(row[1]) for row in rows) == 50
    right = sum(int(row[1]) * float(row[2]) for row in rows) / 50
    assert right == pytest.approx(metrics["top1"], abs=1e-3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__num_classes": 1000}, "has 12 classes, but --config.model.num_classes=1000"),
        ({"trainable": "some"}, "--config.trainable=some is not one of"),
        ({"trainable": "last", "trainable_blocks": 3.0}, "must be 0.5 or an integer from 1"),
        ({"head__pool": "max"}, "--config.head.pool=max is not one of"),
        ({"optim__name": "sgd"}, "--config.optim.name=sgd is not one of"),
        (
            {"mix__mixup": 0.8, "mix__group": 1},
            "mix.group=1 with --config.batch_size=16: .*must be even",
        ),
        ({"label_smoothing": 1.0}, r"--config.label_smoothing=1.0 must be a number in \[0, 1\)"),
        ({"mix__prob": 1.5}, r"--config.mix.prob=1.5 must be a number in \[0, 1\]"),
        ({"optim__name": "lars"}, "layer_decay must be 1 with"),
    ],
)
def test_impossible_choices_are_refused_with_their_name(changes, message):
    with pytest.raises(UsageError, match=message):
        Classify(classify(init_from="", **changes), "")


def images(folder, classes, number=8):
    from PIL import Image

    for label, name in enumerate(classes):
        os.makedirs(folder / name)
        for i in range(number):
            Image.new("RGB", (16, 16), (20 * label, 9 * i, 7)).save(folder / name / f"{i}.png")


def test_other_classes_in_the_held_out_images_are_refused(tmp_path):
    images(tmp_path / "train", ["a", "b"])
    images(tmp_path / "val", ["b", "c", "d"])
    folder = {"data__source": "folder", "data__root": str(tmp_path), "model__num_classes": 0}
    with pytest.raises(UsageError, match="do not have the classes of.*wrong folder"):
        Classify(classify(init_from="", **folder), "")
    images(tmp_path / "flat" / "train", ["."])
    folder["data__root"] = str(tmp_path / "flat")
    with pytest.raises(UsageError, match="has no labels: give every class a folder"):
        Classify(classify(init_from="", data__holdout=2, **folder), "")
