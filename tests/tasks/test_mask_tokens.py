"""A run whose encoder has mask tokens (paper table 1c), and transfer of its encoder."""

import json

import jax
import numpy as np
import pytest

from mae_jax.checkpoint import reader
from mae_jax.inference import load
from mae_jax.ops.trees import flatten
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import loop
from tests.helpers import tiny_configs


def run(workdir, config, task):
    return loop.run(task(config, str(workdir)), config, str(workdir))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mask_tokens")
    config = tiny_configs.config(
        steps=4,
        model__encoder_mask_tokens=True,
        model__decoder_depth=0,
        eval_every=4,
        figure_every=4,
        eval__knn_every=4,
    )
    assert run(folder, config, Pretrain)
    return folder


def test_it_trains_and_is_watched(folder):
    assert np.isfinite(tiny_configs.metric_lines(folder, "eval")[-1]["loss"])
    neighbors = tiny_configs.metric_lines(folder, "knn")[-1]
    assert neighbors["count"] == 20 and list(folder.rglob("*.png"))
    names = flatten(reader.load_arrays(str(folder))["params"])
    assert "encoder_mask_token" in names and "mask_token" not in names
    assert not any(name.startswith("decoder_blocks") for name in names)


def test_features_are_those_of_the_online_probes(folder):
    model = load(str(folder))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    task = Pretrain(
        tiny_configs.config(model__encoder_mask_tokens=True, model__decoder_depth=0), ""
    )
    params = reader.load_arrays(str(folder))["params"]
    state = type("State", (), {"params": params})
    tokens = jax.jit(lambda x: task._encode(state, x))(images)
    ours = model.features(images, pool="cls")
    np.testing.assert_allclose(ours, tokens[:, 0], rtol=0, atol=1e-5)
    assert model.reconstruct(images).predicted.shape == images.shape


def test_fine_tuning_leaves_the_mask_token_behind(folder, tmp_path):
    config = tiny_configs.classify_config(init_from=str(folder), steps=1)
    assert run(tmp_path, config, Classify)
    report = json.loads((tmp_path / "init_from.json").read_text())
    assert "encoder_mask_token" in report["unused"]
    assert "blocks_0/attn/qkv/kernel" in report["matched"] and "cls_token" in report["matched"]


def test_another_kind_of_pre_training_does_not_continue_from_it(folder, tmp_path):
    with pytest.raises(UsageError, match="missing.*'mask_token'.*unknown.*'encoder_mask_token'"):
        run(tmp_path, tiny_configs.config(init_from=str(folder), steps=1), Pretrain)


def test_fixed_crops_are_trained_on_alike_after_a_restart():
    def batches(start, number):
        task = Pretrain(tiny_configs.config(data__augment="crop_fixed"), "")
        feed = task.train_batches(start)
        found = [np.asarray(next(feed)["image"]) for _ in range(number)]
        feed.close()
        return found

    whole, rest = batches(0, 3), batches(2, 1)
    np.testing.assert_array_equal(whole[2], rest[0])
    assert not np.array_equal(whole[0], whole[1])
