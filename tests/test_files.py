"""Small files, on a disk and in a bucket."""

import errno
import os

import pytest

from mae_jax import files


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    if request.param == "bucket":
        request.getfixturevalue("gcs")
        return "gs://bucket/run"
    return str(tmp_path / "run")


def test_a_file_is_made_replaced_and_removed(folder):
    path = f"{folder}/below/a.txt"
    assert not files.exists(path)
    with pytest.raises(FileNotFoundError):
        files.read(path)
    with pytest.raises(FileNotFoundError):
        files.written_at(path)
    for content in (b"one", b"", b"\0three"):
        files.write(path, content)
        assert files.read(path) == content and files.exists(path)
    assert files.exists(f"{folder}/below")
    assert files.written_at(path) > 1.7e9
    for _ in range(2):
        files.remove(path)
        assert not files.exists(path)


def test_on_a_disk_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    path = str(tmp_path / "a")
    files.write(path, b"old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, b"new")
    assert files.read(path) == b"old"


@pytest.mark.parametrize(
    "status, number", [(401, errno.EACCES), (403, errno.EACCES), (400, errno.ENETUNREACH)]
)
def test_a_bucket_out_of_reach_is_as_a_disk_that_is(gcs, status, number):
    gcs.refuse("", "", status)
    for act in (
        lambda: files.write("gs://bucket/a", b"x"),
        lambda: files.read("gs://bucket/a"),
        lambda: files.remove("gs://bucket/a"),
    ):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == number and "\n" not in str(caught.value)


def test_errors_of_others_pass():
    with pytest.raises(KeyError), files.os_errors():
        raise KeyError
