"""Recipes on small data sets: what is lowered, logged and refused."""

import os

import numpy as np
import pytest
from PIL import Image

from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import TASKS, adaptation
from mae_jax.train import initial_state
from tests.helpers import tiny_configs


def adapted(config, num_images, *, holdout=0, num_devices=1):
    numbers = {"num_images": num_images, "holdout": holdout, "num_devices": num_devices}
    adaptation.adapt(config, **numbers, make_task=TASKS[config.task])
    return config


@pytest.mark.parametrize(
    "asked, images, devices, batch",
    [
        (64, 90, 1, 64),
        (64, 64, 1, 64),
        (64, 54, 4, 32),
        (48, 40, 1, 24),
        (100, 60, 2, 50),
        (4096, 1000, 8, 512),
        (25, 20, 1, 5),
        (64, 1, 1, 1),
    ],
)
def test_a_batch_is_the_largest_divisor_that_an_epoch_holds(asked, images, devices, batch):
    config = adapted(tiny_configs.config(batch_size=asked), images, num_devices=devices)
    assert config.batch_size == batch
    before = config.to_dict()
    assert adapted(config, images, num_devices=devices).to_dict() == before  # as a restart finds it


def test_parts_of_a_smaller_batch_still_divide_it():
    config = adapted(tiny_configs.config(batch_size=64, grad_accum=16), 40, num_devices=4)
    assert (config.batch_size, config.grad_accum) == (32, 8)


@pytest.mark.parametrize(
    "batch, group, images, expected",
    [(48, 32, 90, 24), (64, 32, 90, 32), (16, 5, 90, 4), (50, 32, 30, 10), (64, 32, 20, 16)],
)
def test_mixing_groups_are_even_divisors_of_the_batch(batch, group, images, expected):
    config = tiny_configs.classify_config(batch_size=batch, mix__mixup=0.8, mix__group=group)
    config = adapted(config, images)
    assert config.mix.group == expected and config.batch_size % expected == 0


def test_groups_that_are_not_used_stay_as_they_are():
    config = adapted(tiny_configs.classify_config(batch_size=48, head__batch_norm_group=7), 90)
    assert (config.mix.group, config.head.batch_norm_group) == (32, 7)
    config = tiny_configs.classify_config("linprobe", batch_size=64, head__batch_norm_group=512)
    assert adapted(config, 90).head.batch_norm_group == 64


@pytest.mark.parametrize(
    "changes, warmup",
    [
        ({"optim__warmup_epochs": 9.0}, 0.33),  # 20 steps of 16 are 3.33 epochs of 96
        ({"optim__warmup_epochs": 3.3}, 3.3),
        ({"optim__warmup_epochs": 5.0, "steps": 0, "epochs": 5.0}, 0.5),
    ],
)
def test_a_warmup_is_shorter_than_the_run(changes, warmup):
    assert adapted(tiny_configs.config(**changes), 96).optim.warmup_epochs == warmup


def photos(folder, number):
    rng = np.random.default_rng(0)
    for i in range(number):
        pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(os.path.join(folder, f"{i:03}.png"))


@pytest.mark.parametrize("number, holdout, batch", [(60, 6, 32), (100, 10, 64), (25, 2, 16)])
def test_a_small_folder_is_trained_on_with_one_line(tmp_path, caplog, number, holdout, batch):
    photos(tmp_path, number)
    place = {"data__source": "folder", "data__root": str(tmp_path), "data__holdout": 64}
    caplog.set_level("WARNING", logger="mae_jax")
    config = tiny_configs.config(batch_size=64, steps=200, **place)
    task = TASKS["pretrain"](config, "")
    train = number - holdout
    assert (len(task.data.train_source), len(task.data.eval_source)) == (train, holdout)
    assert (config.data.holdout, config.batch_size) == (holdout, batch)
    lines = [line for line in caplog.messages if "adapted" in line]
    said, changed = lines[0].split(": ")
    assert said == f"adapted to {train} training images" and len(lines) == 1
    expected = {f"data.holdout 64 -> {holdout}"}
    expected |= {f"batch_size 64 -> {batch}"} if batch < 64 else set()
    assert set(changed.split(", ")) == expected
    # Checkpoints contain the adapted values, and a restart of the same recipe finds no change.
    again = TASKS["pretrain"](tiny_configs.config(batch_size=64, steps=200, **place), "")
    assert task.metadata(0)["config"]["batch_size"] == batch
    assert initial_state.changes(task.metadata(0), again.metadata(0)) == []


def test_a_split_of_its_own_leaves_the_holdout_alone():
    config = tiny_configs.config(data__holdout=1000)
    assert len(TASKS["pretrain"](config, "").data.eval_source) == 20 and config.data.holdout == 1000


def test_one_photo_has_nothing_to_hold_out(tmp_path):
    photos(tmp_path, 1)
    place = {"data__source": "folder", "data__root": str(tmp_path), "data__holdout": 64}
    with pytest.raises(UsageError, match="holdout=1 leaves nothing of the 1 training images"):
        TASKS["pretrain"](tiny_configs.config(**place), "")
