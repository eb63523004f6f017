"""Which folders are trained on and which are held out, by their names."""

import os

import pytest

from mae_jax.runtime.errors import UsageError
from tests.data.helpers import sources, write


def fill(root, *folders):
    write(root, *(f"{folder}/1.jpg" for folder in folders))


def splits(root, **config):
    """Where the training and the held-out images are, relative to `root`."""
    return [source and os.path.relpath(source.name, root) for source in sources(root, **config)]


@pytest.mark.parametrize(
    ("folders", "wanted"),
    [
        (["train", "val"], ["train", "val"]),
        (["train", "valid"], ["train", "valid"]),
        (["train", "dev", "test"], ["train", "dev"]),
        (["train", "test"], ["train", "test"]),
        (["train", "val", "validation"], ["train", "val"]),
        (["Train", "Val", "annotations"], ["Train", "Val"]),
        (["TRAIN", "VALIDATION"], ["TRAIN", "VALIDATION"]),
        (["training", "testing"], ["training", "testing"]),
        (["Training", "Testing", ".cache", "__MACOSX"], ["Training", "Testing"]),
        (["train", "Train", "val"], ["train", "val"]),
        (["Train"], ["Train", None]),
        (["archive/Train", "archive/Val"], ["archive/Train", "archive/Val"]),
        (["a/b/train", "a/b/val", "__MACOSX"], ["a/b/train", "a/b/val"]),
    ],
)
def test_names_of_splits(tmp_path, folders, wanted):
    fill(tmp_path, *(f"{folder}/{name}" for folder in folders for name in ("cat", "dog")))
    assert splits(tmp_path) == wanted
    assert sources(tmp_path).train.classes == ["cat", "dog"]


@pytest.mark.parametrize("names", [["bus", "car", "Train"], ["a", "dev", "test"], ["test", "x"]])
def test_a_class_may_be_named_like_a_split(tmp_path, caplog, names):
    fill(tmp_path, *names)
    train, evaluation = sources(tmp_path)
    assert train.classes == sorted(names) and evaluation is None
    assert "treated as a class" in caplog.text


def test_folders_next_to_a_split_are_logged(tmp_path, caplog):
    fill(tmp_path, "train/a", "bus", "car", "test/a")
    assert splits(tmp_path) == ["train", "test"]
    assert f"{tmp_path}: not used, next to the folder train: bus, car" in caplog.text


@pytest.mark.parametrize("config", [{}, {"split": ""}])
def test_held_out_images_do_not_become_classes(tmp_path, config):
    fill(tmp_path, "Val", "Test")
    (tmp_path / "notes").mkdir()
    with pytest.raises(UsageError, match="--config.data.split="):
        sources(tmp_path, **config)


def test_a_single_folder_named_like_a_split_may_contain_the_images(tmp_path):
    fill(tmp_path, "train/train")  # torchvision's layout of unlabeled images
    assert splits(tmp_path) == ["train", None]


def test_splits_that_are_named(tmp_path, caplog):
    fill(tmp_path, "data/a/cat", "data/b/cat", "data/val/cat")
    assert splits(tmp_path, split="a") == ["data/a", "data/val"]
    assert splits(tmp_path, split="data/a", eval_split="data/b") == ["data/a", "data/b"]
    assert splits(tmp_path, split="data/b", eval_split="data/b") == ["data/b", "data/b"]
    assert "the held-out images are those trained on" in caplog.text
    assert sources(tmp_path / "data", split="").eval is None  # they are trained on


def test_a_run_that_began_without_held_out_images_gets_none(tmp_path, caplog):
    fill(tmp_path / "data", "train/cat", "train/dog")
    first = sources(tmp_path / "data", tmp_path / "run")
    assert first.eval is None
    fill(tmp_path / "data", "valid/cat")
    again = sources(tmp_path / "data", tmp_path / "run")
    assert again.eval is None and again.train.fingerprint() == first.train.fingerprint()
    assert "valid is not used, as it was not when this run began" in caplog.text
    assert sources(tmp_path / "data", tmp_path / "another run").eval is not None


def test_links_in_circles_around_the_splits(tmp_path):
    (tmp_path / "self").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="no images"):
        sources(tmp_path)
