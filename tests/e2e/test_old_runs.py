"""A run written before the package got its current layout (parity/run_0_1.zip).

Made by configs/demo.py with the flags of `tiny_configs.flags`, log_every=4 and a checkpoint every 4
of 8 steps; the zip contains its workdir after step 4.
"""

import os
import shutil

import numpy as np
import pytest

import mae_jax
from mae_jax.checkpoint import reader
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import loop
from tests.helpers import tiny_configs as tiny
from tests.helpers.processes import REPO

LOSS = 1.0641083717346191  # that the run had logged after step 8
BASELINE_LOSS = 0.3200364410877228


@pytest.fixture
def old_run(tmp_path):
    shutil.unpack_archive(os.path.join(REPO, "tests", "parity", "run_0_1.zip"), tmp_path)
    return str(tmp_path)


def config_of(run, step):
    return reader.load_metadata(f"{run}/checkpoints/{step}")["config"]


def test_it_continues_where_it_was(old_run):
    config = tiny.config(steps=8, checkpoint__every_steps=4, checkpoint__keep=2, log_every=4)
    assert loop.run(Pretrain(config, old_run), config, old_run)
    first, last = tiny.metric_lines(old_run)
    assert config_of(old_run, 4)["data"]["on_device"] is False  # was `data.resident`
    assert config_of(old_run, 4).keys() == config_of(old_run, 8).keys()
    assert (first["step"], last["step"]) == (4, 8)
    # The run had one device, tests have four, so sums are rounded differently.
    np.testing.assert_allclose(last["loss"], LOSS, rtol=1e-5)
    np.testing.assert_allclose(last["baseline_loss"], BASELINE_LOSS, rtol=1e-5)


def test_its_model_can_be_used(old_run):
    model = mae_jax.load(old_run)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert np.isfinite(model.features(images)).all()
    assert model.reconstruct(images).predicted.shape == images.shape
