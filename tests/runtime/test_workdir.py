"""Workdirs of all types, with real faults; `test_workdir_lock` tests the lock."""

import os

import pytest

from mae_jax.runtime import filesystem, workdir, workdir_lock
from mae_jax.runtime.errors import UsageError
from tests.runtime.test_workdir_lock import run_alone


def test_only_the_first_process_of_a_run_locks(tmp_path):
    with workdir.lock(str(tmp_path / "w"), first=False):
        assert not os.path.exists(tmp_path / "w")


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "with spaces",
        "Füße-模型-🙂",
        "100%",
        "%s %d",
        "a'b\"c",
        "-dash",
        "x" * 255,
        "a/b/c",
    ],
)
def test_folders_that_work(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = workdir.resolve(name)
    assert path == str(tmp_path / name)
    monkeypatch.chdir("/")
    with workdir.lock(path, first=True):
        assert os.listdir(tmp_path / name) == [workdir_lock.LOCK]


def test_a_home_and_a_link_are_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workdir.resolve("~/runs/a") == str(tmp_path / "runs" / "a")
    os.makedirs(tmp_path / "real")
    os.symlink(tmp_path / "real", tmp_path / "link")
    in_use = pytest.raises(UsageError, match="in use by")
    with workdir.lock(str(tmp_path / "link"), first=True), in_use:
        run_alone(tmp_path / "real")


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "is empty"),
        ("s3://bucket/run", "mount a s3:// bucket"),
        ("gs://bucket/", "is not a folder in a bucket: use gs://BUCKET/FOLDER"),
        ("gs:///run", "is not a folder in a bucket"),
        ("~nobody-of-this-name/x", "no such user"),
        ("a\nb", "unprintable characters"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        workdir.resolve(name)
    assert "\n" not in str(caught.value)


def test_a_folder_of_a_bucket_is_left_as_it_is():
    assert workdir.resolve("gs://bucket/runs//vit_l/") == "gs://bucket/runs/vit_l"


def nothing(folder):
    return folder


def make_file(folder):
    folder.touch()


def dangling_link(folder):
    os.symlink(folder.parent / "nowhere", folder)


def full_disk(folder):
    folder.mkdir()
    os.symlink("/dev/full", folder / filesystem.PROBE)  # writes fail for lack of space


def lock_folder(folder):
    (folder / workdir_lock.LOCK).mkdir(parents=True)


def lock_link(folder):
    folder.mkdir()
    os.symlink(folder / "nowhere", folder / workdir_lock.LOCK)


@pytest.mark.parametrize(
    "prepare, name, message",
    [
        (make_file, "w", "File exists.*that is a folder"),
        (make_file, "w/below", "Not a directory.*whose parents are folders"),
        (dangling_link, "w", "File exists"),
        (full_disk, "w", "No space left on device: free some space"),
        (lock_folder, "w", "Is a directory"),
        (lock_link, "w", "can be neither created nor read"),
        (nothing, "x" * 256, "File name too long: use a shorter --workdir"),
        (nothing, "/proc/run", "use a --workdir that is writable"),
        (nothing, "/dev/null/run", "Not a directory"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, prepare, name, message):
    prepare(tmp_path / name.split("/")[0])
    with pytest.raises(UsageError, match=message) as caught:
        run_alone(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_only_for_reading(tmp_path, monkeypatch):
    tmp_path.chmod(0o555)
    if os.geteuid() == 0:  # root may write anywhere

        def refuse(*args, **more):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(UsageError, match="Permission denied: use a --workdir that is writable"):
        run_alone(tmp_path / "w")
    tmp_path.chmod(0o755)
