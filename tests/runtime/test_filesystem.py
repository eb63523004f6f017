"""Small files, on a disk and in a bucket."""

import errno
import os

import pytest

from mae_jax.runtime import filesystem


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    if request.param == "bucket":
        request.getfixturevalue("gcs")
        return "gs://bucket/run"
    return str(tmp_path / "run")


def test_a_file_is_made_replaced_and_removed(folder):
    path = f"{folder}/below/a.txt"
    assert not filesystem.exists(path)
    with pytest.raises(FileNotFoundError):
        filesystem.read(path)
    with pytest.raises(FileNotFoundError):
        filesystem.written_at(path)
    for content in (b"one", b"", b"\0three"):
        filesystem.write(path, content)
        assert filesystem.read(path) == content and filesystem.exists(path)
    assert filesystem.exists(f"{folder}/below")
    assert filesystem.written_at(path) > 1.7e9
    for _ in range(2):
        filesystem.remove(path)
        assert not filesystem.exists(path)


def test_on_a_disk_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    path = str(tmp_path / "a")
    filesystem.write(path, b"old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        filesystem.write(path, b"new")
    assert filesystem.read(path) == b"old"


def test_several_processes_may_write_the_same_file(tmp_path):
    path = str(tmp_path / "new" / "a")
    with filesystem.replacing(path, shared=True) as slow:
        filesystem.write(path, b"fast", shared=True)
        with open(slow, "wb") as file:
            file.write(b"slow")
        assert filesystem.read(path) == b"fast"
    assert filesystem.read(path) == b"slow" and os.listdir(tmp_path / "new") == ["a"]


@pytest.mark.parametrize(
    "status, number", [(401, errno.EACCES), (403, errno.EACCES), (400, errno.ENETUNREACH)]
)
def test_a_bucket_out_of_reach_is_as_a_disk_that_is(gcs, status, number):
    gcs.refuse("", "", status)
    for act in (
        lambda: filesystem.write("gs://bucket/a", b"x"),
        lambda: filesystem.read("gs://bucket/a"),
        lambda: filesystem.remove("gs://bucket/a"),
    ):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == number and "\n" not in str(caught.value)


def test_errors_of_others_pass():
    with pytest.raises(KeyError), filesystem.os_errors():
        raise KeyError


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
def test_nothing_stays_of_a_file_that_could_not_be_written(tmp_path, error):
    (tmp_path / "a.npz").write_bytes(b"old")
    with pytest.raises(type(error)), filesystem.replacing(str(tmp_path / "a.npz")) as temporary:
        assert temporary.endswith(os.sep + "a.npz")
        for name in (temporary, temporary + ".beside"):
            with open(name, "wb") as file:
                file.write(b"half")
        raise error
    assert os.listdir(tmp_path) == ["a.npz"] and (tmp_path / "a.npz").read_bytes() == b"old"


def test_a_folder_appears_whole_and_what_a_kill_left_goes(tmp_path):
    (tmp_path / ".a.tmp" / "a").mkdir(parents=True)
    (tmp_path / ".a.tmp" / "a" / "old").touch()
    with filesystem.replacing(str(tmp_path / "a")) as temporary:
        os.makedirs(temporary)
        open(os.path.join(temporary, "new"), "w").close()
        assert not (tmp_path / "a").exists()
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["new"]
