"""The recipes for own data, up to the formats of other programs."""

import numpy as np
import pytest

from configs.finetune import folder
from mae_jax import convert, inference
from mae_jax.checkpoint import best, layout
from mae_jax.tasks.classify import Classify
from mae_jax.tools import inspect
from mae_jax.train import loop
from tests.helpers import photos, tiny_configs
from tests.parity import official


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return photos.two_classes(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """configs/finetune/folder.py:quick, after three tiny steps with an evaluation of each."""
    workdir = str(tmp_path_factory.mktemp("run"))
    config = folder.get_config("quick")
    config.update({"steps": 3, "batch_size": 4, "log_every": 1, "eval_every": 1, "figure_every": 0})
    config.init_from = official.path("hf_tiny_v4names")
    config.data.root, config.data.workers = str(root), 1
    config.checkpoint.keep = 1
    loop.run(Classify(config, workdir), config, workdir)
    return workdir


def test_the_best_step_is_kept_by_accuracy(run, capsys):
    record = best.read(run)
    assert record is not None
    lines = tiny_configs.metric_lines(run, "eval")[1:]
    accuracy = {line["step"]: line["top1"] for line in lines}
    first_best = max(accuracy, key=lambda step: (accuracy[step], -step))
    assert record == ("eval/top1", accuracy[first_best], first_best)
    assert layout.steps(run) == sorted({first_best, 3})
    assert inference.load(f"{run}:best").metadata["step"] == first_best
    for path in (run, f"{run}:best"):
        assert inspect.main([path]) == 0
        assert f"best so far: step {first_best}, eval/top1 " in capsys.readouterr().out
    assert inspect.describe(run)["best"] == record._asdict()
    assert inspect.main(["--verify", f"{run}:best"]) == 0


@pytest.mark.parametrize("format", ["hf_vit", "timm", "official", "npz"])
def test_it_is_exported_everywhere_and_predicts_the_same(run, root, tmp_path, format):
    endings = {"official": ".safetensors", "npz": ".npz"}
    path = str(tmp_path / f"exported{endings.get(format, '')}")
    convert.save(convert.load(f"{run}:best"), path, format=format)
    model, exported = inference.load(f"{run}:best"), inference.load(path)
    images = model.load_images(root)
    expected = model.probabilities(images)
    assert expected.shape == (24, 2) and exported.class_names == ["dark", "light"]
    np.testing.assert_array_equal(exported.load_images(root), images)
    np.testing.assert_array_equal(exported.probabilities(images), expected)


def test_what_cannot_be_exported_everywhere_is_said_before_training():
    config = tiny_configs.classify_config(head__pool="mean")
    export = Classify(config, "").summary()["export"]
    assert "timm, not to Hugging Face" in export and "--config.head.pool=cls exports to" in export
    assert "export" not in Classify(tiny_configs.classify_config(head__pool="cls"), "").summary()
