"""Sizes and pixel statistics that a recipe takes from the weights it starts with."""

import shutil

import pytest

from configs.finetune import folder as finetune
from configs.scratch import folder as scratch
from mae_jax.checkpoint import reader
from mae_jax.runtime.errors import UsageError
from mae_jax.tasks import batch_size
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.inheritance import inherit
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.train import initial_state, loop
from tests.helpers import photos, tiny_configs
from tests.parity import official

PIXELS = {"data__mean": (0.1, 0.2, 0.3), "data__std": (0.4, 0.5, 0.6)}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("pretrained"))
    config = tiny_configs.config(steps=1, model__mlp_ratio=2.0, **PIXELS)
    loop.run(Pretrain(config, workdir), config, workdir)
    return workdir


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return photos.two_classes(tmp_path_factory.mktemp("images"))


def recipe(module, init_from, root=""):
    config = module.get_config("quick")
    changes = {"steps": 2, "batch_size": 4, "log_every": 1, "eval_every": 2, "figure_every": 0}
    config.update(changes)
    config.init_from, config.data.root, config.data.workers = str(init_from), str(root), 1
    return config


def test_all_of_it_comes_from_a_run_but_for_what_is_given(pretrained):
    config = recipe(finetune, pretrained)
    config.model.image_size = (32, 32)
    inherit(config, "")
    model = config.model
    assert (model.size, model.embed_dim, model.depth, model.num_heads) == ("Ti", 24, 1, 2)
    assert (model.mlp_ratio, model.channels) == (2.0, 3)
    assert (tuple(model.image_size), tuple(model.patch_size)) == ((32, 32), (4, 4))
    assert (config.data.mean, config.data.std) == tuple(PIXELS.values())
    assert config.data.dtype == "uint8"


def test_and_from_weights_of_another_project():
    config = recipe(finetune, official.path("hf_tiny_v4names"))
    inherit(config, "")
    assert config.model.embed_dim == 48 and config.model.depth == 3
    assert len(config.data.mean) == config.model.channels == 3


def test_a_run_that_continues_no_longer_needs_them(pretrained, images, tmp_path):
    source = shutil.copytree(pretrained, tmp_path / "source")
    workdir = str(tmp_path / "run")
    config = recipe(finetune, source, images)
    assert loop.run(Classify(config, workdir), config, workdir)
    assert config.model.embed_dim == 24 and config.data.holdout == 2
    shutil.rmtree(source)
    again = recipe(finetune, source, images)
    task = Classify(again, workdir)
    assert again.to_dict() == config.to_dict()
    assert loop.run(task, again, workdir)  # nothing left to do, and nothing changed


def test_it_keeps_the_batch_that_was_chosen_by_memory(pretrained, tmp_path, monkeypatch):
    monkeypatch.delattr(batch_size, "find_largest")
    for workdir, resume in ((pretrained, ""), (str(tmp_path), pretrained)):
        config = tiny_configs.config(
            steps=1, batch_size=0, resume=resume, model__mlp_ratio=2.0, **PIXELS
        )
        task = Pretrain(config, workdir)
        assert config.batch_size == tiny_configs.config().batch_size
        assert initial_state.changes(reader.load_metadata(pretrained), task.metadata(1)) == []


def test_from_scratch_takes_the_sizes_only(pretrained, images, tmp_path):
    config = recipe(scratch, pretrained, images)
    task = Classify(config, str(tmp_path))
    assert task.model.embed_dim == 24 and task.summary()["start"] == "from scratch"
    assert loop.run(task, config, str(tmp_path))
    assert not (tmp_path / "init_from.json").exists()  # lists the parameters that were taken


def test_what_cannot_be_taken_is_said_in_one_line(tmp_path):
    with pytest.raises(UsageError, match="--config.init_from is empty.*model.size.*data.std"):
        inherit(recipe(finetune, ""), "")
    with pytest.raises(UsageError, match="--config.init_from=/nowhere"):
        inherit(recipe(finetune, "/nowhere"), "")
