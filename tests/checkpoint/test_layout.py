"""Folders of checkpoints, on a disk and in a bucket (simulated by a folder)."""

import os

import pytest
from etils.epath import testing

from mae_jax.checkpoint import best, layout
from mae_jax.checkpoint.best import Best
from mae_jax.runtime.errors import UsageError


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path, monkeypatch):
    """(a run's path as a user gives it, its folder)."""
    if request.param == "disk":
        yield str(tmp_path / "run"), tmp_path / "run"
        return

    def here(path):
        return os.fspath(path).replace("gs://", f"{tmp_path}/")

    def one(original, path, *args, **kwargs):
        return original(here(path), *args, **kwargs)

    def two(original, path, other, **kwargs):
        return original(here(path), here(other), **kwargs)

    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)  # it reads real ones
    names = ("exists", "isdir", "listdir", "makedirs", "mkdir", "open", "remove", "rmtree")
    with testing.mock_epath(rename=two, **dict.fromkeys(names, one)):
        yield "gs://bucket/run", tmp_path / "bucket" / "run"


def make(folder, *names):
    for name in names:
        for item in layout.ITEMS:
            (folder / "checkpoints" / name / item).mkdir(parents=True)
        (folder / "checkpoints" / name / "commit_success.txt").touch()


def test_steps_are_found_set_aside_and_deleted(place):
    path, folder = place
    assert layout.steps(path) == [] and not layout.exists(path)
    with pytest.raises(UsageError, match=f"no checkpoint under {path}: give a run folder"):
        layout.find(path)
    make(folder, "9", "10", "11", "corrupt-11", "12.orbax-checkpoint-tmp", "deleting-3")
    assert layout.steps(path) == [9, 10, 11]
    newest = (f"{path}/checkpoints/11", path, 11)
    assert layout.find(path) == layout.find(f"{path}/checkpoints") == newest
    assert layout.find(f"{path}/checkpoints/9") == (f"{path}/checkpoints/9", path, 9)
    assert layout.quarantine(path, 11) == "corrupt-11-2"
    layout.prune(path, 10, keep=1, keep_every=0)
    layout.remove_unfinished(path)
    layout.make_writable(path)
    left = sorted(os.listdir(folder / "checkpoints"))
    assert left == ["10", "corrupt-11", "corrupt-11-2"]
    layout.quarantine(path, 10)
    assert layout.exists(path)  # it has saved something
    with pytest.raises(UsageError, match=r"\(corrupt-10, corrupt-11, corrupt-11-2 set aside"):
        layout.find(path)


def test_the_best_step_is_found_by_name_and_never_deleted(place):
    path, folder = place
    with pytest.raises(UsageError, match=f"no checkpoint under {path}: "):
        layout.find(f"{path}:best")
    make(folder, "1", "2", "3", "4")
    with pytest.raises(UsageError, match=r"run:best: .*no best step.*checkpoint\.keep_best"):
        layout.find(f"{path}:best")
    best.write(path, Best("eval/top1", 0.5, 2))
    assert best.read(path) == ("eval/top1", 0.5, 2)
    expected = (f"{path}/checkpoints/2", path, 2)
    assert layout.find(f"{path}:best") == layout.find(f"{path}/checkpoints:best") == expected
    layout.prune(path, 4, keep=1, keep_every=0, protected={2})
    assert layout.steps(path) == [2, 4]
    layout.quarantine(path, 2)
    with pytest.raises(layout.NoSuchStep, match=r"2 does not exist.*steps of this run: 4\)"):
        layout.find(f"{path}:best")
    best.write(path, None)
    best.write(path, None)
    assert best.read(path) is None


def test_a_file_has_no_best_step(tmp_path):
    (tmp_path / "model.npz").touch()
    with pytest.raises(UsageError, match=r"no checkpoint under .*model\.npz"):
        layout.find(f"{tmp_path}/model.npz:best")


def test_a_folder_that_is_named_so_wins(place):
    path, folder = place
    make(folder, "1", "2")
    best.write(path, Best("eval/top1", 0.5, 1))
    make(folder.parent / "run:best", "7")
    assert layout.find(f"{path}:best") == (f"{path}:best/checkpoints/7", f"{path}:best", 7)


def test_weights_are_no_step(place):
    path, folder = place
    for item in layout.ITEMS:
        (folder / item).mkdir(parents=True)
    assert layout.find(path) == (path, "", 0)


def test_in_a_bucket_a_step_is_complete_with_its_last_file(place):
    path, folder = place
    make(folder, "1", "2")
    (folder / "checkpoints" / "2" / "commit_success.txt").unlink()
    layout.remove_unfinished(path)
    bucket = path.startswith("gs://")
    assert layout.steps(path) == ([1] if bucket else [1, 2])
    assert sorted(os.listdir(folder / "checkpoints")) == (["1"] if bucket else ["1", "2"])


def test_only_what_a_run_writes_is_a_step(place):
    path, folder = place
    make(folder, "20", "0", "000020", "007", "\u0663", "\u00b2", "1e3", "-1", "1.5", " 5")
    assert layout.steps(path) == [0, 20]
    assert layout.misnamed(path) == ["000020", "007", "\u0663"]
    layout.prune(path, 20, keep=1, keep_every=0)
    layout.remove_unfinished(path)
    assert layout.steps(path) == [20] and len(os.listdir(folder / "checkpoints")) == 9
    assert layout.find(f"{path}/checkpoints/007").run == ""
    with pytest.raises(layout.NoSuchStep, match=r"7 does not exist.*steps of this run: 20\)"):
        layout.find(f"{path}/checkpoints/7")
