"""The commands that a finished run prints can be copied as they are."""

import shlex
from pathlib import Path

import pytest
from absl.flags import FlagValues

from mae_jax.config import flags
from mae_jax.runtime import workdir
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.knn import Knn
from mae_jax.tasks.next_commands import after_classification, after_pretraining
from mae_jax.tasks.pretrain import Pretrain
from tests.helpers import tiny_configs
from tests.helpers.processes import REPO

RUN = "runs/my photos"


def folder_config(make=tiny_configs.config, **changes):
    return make(data__source="folder", data__root="/data/my photos", **changes)


def test_after_pretraining_on_a_folder():
    config = folder_config(data__eval_split="val", steps=0)
    lines = after_pretraining(config, RUN, labeled=True)
    start = "--config.init_from=runs/my photos' '--config.data.root=/data/my photos'"
    assert lines == [
        "python -m mae_jax.tools.reconstruct --checkpoint 'runs/my photos' "
        "--images '/data/my photos' --out reconstructions.png",
        "python -m mae_jax.tools.extract --checkpoint 'runs/my photos' "
        "--images '/data/my photos' --out features.npz",
        f"python -m mae_jax.main --config=configs/finetune/folder.py '{start} "
        "--config.data.eval_split=val",
        f"python -m mae_jax.main --config=configs/knn/folder.py '{start} "
        "--config.data.eval_split=val",
    ]
    assert after_pretraining(config, RUN, labeled=False) == lines[:2]
    config.steps = 600  # as in configs/folder.py:quick
    assert "configs/finetune/folder.py:quick " in after_pretraining(config, RUN, labeled=True)[2]


@pytest.mark.parametrize("source", ["shapes", "tfds"])
def test_after_pretraining_on_other_images(source):
    config = tiny_configs.config(data__source=source, data__name="cifar10", steps=0)
    *_, extract, finetune, _ = after_pretraining(config, "runs/a", labeled=True)
    assert extract.endswith("--checkpoint runs/a --images DIR --out features.npz")
    expected = {
        "shapes": "configs/finetune/folder.py:quick --config.init_from=runs/a "
        "--config.data.source=shapes",
        "tfds": "configs/finetune/folder.py --config.init_from=runs/a --config.data.source=tfds "
        "--config.data.name=cifar10",
    }
    assert finetune == f"python -m mae_jax.main --config={expected[source]}"


@pytest.mark.parametrize("pool, kind", [("cls", "hf_vit"), ("mean", "timm")])
def test_after_classification(pool, kind):
    config = folder_config(tiny_configs.classify_config, head__pool=pool)
    lines = after_classification(config, "a", held_out=True)
    assert lines == [
        "python -m mae_jax.tools.evaluate --checkpoint a --out evaluation",
        "python -m mae_jax.tools.predict --checkpoint a --images '/data/my photos' "
        "--out predictions",
        f"python -m mae_jax.tools.convert --from a --to {kind} --format {kind}",
    ]
    assert after_classification(config, "a", held_out=False) == lines[1:]


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.parametrize("source", ["folder", "shapes"])
def test_the_commands_accept_these_flags(source):
    config = folder_config(data__eval_split="val")
    config.data.source = source
    classify = folder_config(tiny_configs.classify_config)
    lines = after_pretraining(config, RUN, labeled=True)
    for line in [*lines, *after_classification(classify, RUN, held_out=True)]:
        python, _, module, *words = shlex.split(line)
        assert python == "python"
        if module == "mae_jax.main":
            values = FlagValues()
            flags.define_config(values, words)
            assert flags.parse(words, values).init_from == RUN
            continue
        text = Path(REPO, *module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        for flag in (word for word in words if word.startswith("--")):
            assert f'"{flag}"' in text


def test_tasks_know_their_images():
    lines = Pretrain(tiny_configs.config(), "").next_commands("w")
    assert len(lines) == 4 and "configs/finetune/folder.py:quick" in lines[2]
    lines = Classify(tiny_configs.classify_config(), "").next_commands("w")
    assert len(lines) == 3 and "evaluate --checkpoint w" in lines[0]
    assert Knn.next_commands(object.__new__(Knn), "w") == []


def test_a_workdir_is_written_as_one_would(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert workdir.shortened(workdir.resolve("runs/a b")) == "runs/a b"
    assert workdir.shortened("/elsewhere/run") == "/elsewhere/run"
    assert workdir.shortened("gs://bucket/run") == "gs://bucket/run"
